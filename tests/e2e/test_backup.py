"""Consul forgets what controllers remember; a backup brings it back while everything goes on running."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.conftest import ConsulServer
from tests.e2e.system import instance, pids, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_a_rollback_and_the_history_survive_consul_s_loss(consul_server: ConsulServer) -> None:
    with system(consul_server.http, ("n1",)) as made:
        made.up()
        good = made.status()["git"]["commit"]
        bad = made.repo.push(
            {"sleep.yaml": instance("sleep", package="sleeper@1.0.0", replicas=1, settings={"word": "x"})}
        )
        made.settled(bad)
        assert made.asked("rollback", "--yes", "--reason", "too loud").returncode == 0
        before = pids(made.see(lambda s: s["settled"] and s["git"]["rollback"], "rolled back"))
        history = json.loads(made.asked("history", "-o", "json").stdout)["items"]
        file = made.folder / "backup.json"
        done = made.asked("backup", "--out", str(file))
        assert (done.returncode, f"of cluster {made.name}, epoch 1" in done.stdout) == (0, True), done.stderr

        wipe = urllib.request.Request(f"http://{made.consul}/v1/kv/tdie/{made.name}/record?recurse", method="DELETE")
        with urllib.request.urlopen(wipe, timeout=5) as answer:
            assert answer.status == 200
        assert json.loads(made.asked("history", "-o", "json").stdout)["items"] == []

        assert "CONFIRM" in made.asked("restore", str(file)).stderr
        other = json.loads(file.read_text()) | {"cluster": "other"}
        (made.folder / "other.json").write_text(json.dumps(other))
        refused = made.asked("restore", "--yes", str(made.folder / "other.json"))
        assert (refused.returncode, "BACKUP_OTHER_CLUSTER" in refused.stderr) == (1, True)
        done = made.asked("restore", "--yes", str(file))
        assert done.returncode == 0, done.stderr
        status = made.see(lambda s: s["epoch"] > 1 and s["settled"], "leads anew")
        assert (status["git"]["commit"], status["git"]["tip"]) == (good, bad)
        assert status["git"]["rollback"]["why"] == "too loud"
        assert pids(status) == before
        assert json.loads(made.asked("history", "-o", "json").stdout)["items"] == history
        assert int(made.key("epoch")) == status["epoch"]
