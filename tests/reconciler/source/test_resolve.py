"""Resolving one tree after another: what was left alone stays the same object, and the short way never differs from the long."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import TdieError
from agent.packages.pack import pack
from reconciler.source.fetch import download
from reconciler.source.hosts import refused_address
from reconciler.source.resolve import Commit, Resolved, Resolver
from reconciler.source.shelf import Download, Shelf
from reconciler.source.validate import load_worktree
from reconciler.source.walk import FolderTree
from tests.reconciler.source.repos import BASE, CLUSTER, GOOD, MANIFEST, instance


def lay(folder: Path, files: dict[str, str | None]) -> FolderTree:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(text)
    return FolderTree(folder)


def names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def fresh(tree: FolderTree, cache: Path) -> Resolved:
    return Resolver(Shelf(cache)).resolve(tree, Commit("x"))


def test_untouched_instances_stay_the_same_objects(tmp_path: Path) -> None:
    resolver, root = Resolver(Shelf(tmp_path / "c")), tmp_path / "r"
    many = {f"i/{n}.yaml": instance(f"i-{n}") for n in range(20)}
    first = resolver.resolve(lay(root, {**GOOD, **many}), Commit("1")).desired
    assert first is not None
    changes: list[dict[str, str | None]] = [
        {"i/3.yaml": instance("i-3", "wave: 2")},  # the short way
        {"i/4.yaml": instance("i-4", "dependsOn: [{instance: one}]")},  # the long way
        {"i/5.yaml": "broken: ["},
        {"i/5.yaml": instance("i-5")},
        {"cluster.yaml": CLUSTER + "  sync: {interval: 5s}\n"},
        {"new.yaml": instance("new")},
    ]
    for change in changes:
        second = resolver.resolve(lay(root, change), Commit("2")).desired
        if second is not None:
            touched = {"i-3", "i-4", "new"}
            for name in second.instances.keys() - touched:
                assert second.instances[name] is first.instances[name], (name, change)
    assert second is not None
    assert list(second.instances) == sorted(second.instances)
    changed = resolver.resolve(lay(root, {"packages/sleeper/more.txt": "x"}), Commit("3")).desired
    assert changed is not None
    assert changed.instances["one"].spec_hash != first.instances["one"].spec_hash


# Most steps lead from one good tree to another: only there is a short way to go wrong on.
CHOICES: dict[str, list[str | None]] = {
    "a.yaml": [
        instance("a"),
        instance("a", "wave: 3"),
        instance("a", "dependsOn: [{instance: b}]"),
        instance("aa"),
        None,
    ],
    "b.yaml": [
        instance("b"),
        instance("b", "dependsOn: [{instance: a}]"),
        instance("b", "ports: [80]"),
        instance("c"),
        None,
    ],
    "d/c.yml": [
        instance("c", "wave: 1"),
        instance("c", "ports: [80]", count="perNode: 1"),
        instance("c", "movedFrom: b"),
        instance("c") + "---\n" + instance("d"),
        instance("c", package="sleeper@^1.0"),
        "",
    ],
    "e.yaml": [instance("e"), instance("e", "settings: {seconds: none}"), "a: [", None],
    "cluster.yaml": [CLUSTER, CLUSTER.replace("zone: x", "zone: y"), CLUSTER + "  packages: [sleeper@1.0.0]\n"],
    "packages/sleeper/z.yaml": ["a: 1\n", instance("a"), None],
    ".tdieignore": ["d/\n", "e.yaml\n", None],
}
STEPS = st.lists(
    st.sampled_from(sorted(CHOICES))
    .flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(CHOICES[name])))
    .map(lambda row: dict([row])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_one_tree_after_another_is_the_same_as_each_alone(steps: list[dict[str, str | None]], tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "r"
    shutil.rmtree(root, ignore_errors=True)
    resolver = Resolver(Shelf(tmp_path / "c"))
    start = {name: choices[0] for name, choices in CHOICES.items() if not name.startswith((".", "packages/"))}
    lay(root, {**GOOD, **start})
    for step in [{}, *steps]:
        tree = lay(root, step)
        warm, cold = resolver.resolve(tree, Commit("x")), fresh(tree, tmp_path / "c")
        assert warm == cold
        assert (warm.desired is None) == bool(warm.problems)
        if warm.desired is not None:
            assert list(warm.desired.instances) == sorted(warm.desired.instances)


async def test_ignored_hidden_and_package_files_are_no_documents(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            **GOOD,
            ".github/workflows/ci.yaml": "on: push\n",
            ".tdieignore": "# not ours\ncharts/\n*.tmp.yaml\n/docs/*.yaml\n",
            "charts/deep/values.yaml": "a: 1\n",
            "x.tmp.yaml": "a: 1\n",
            "docs/a.yaml": "a: 1\n",
            "packages/sleeper/config.yaml": "a: 1\n",
        },
    )
    assert (await load_worktree(tmp_path)).problems == ()
    lay(tmp_path, {"other/docs/a.yaml": "a: 1\n"})
    assert [p.file for p in (await load_worktree(tmp_path)).problems] == ["other/docs/a.yaml"]


async def test_the_highest_version_in_range_is_taken(tmp_path: Path) -> None:
    files: dict[str, str | None] = {"cluster.yaml": CLUSTER, "one.yaml": instance("one", package="sleeper@^1.0")}
    for version in ("1.0.0", "1.10.0", "1.9.0", "2.0.0", "1.11.0-rc.1"):
        files[f"packages/{version}/manifest.json"] = MANIFEST.replace("1.0.0", version)
        files[f"{version}.yaml"] = BASE["packages.yaml"].replace("1.0.0", version).replace("/sleeper", f"/{version}")
    lay(tmp_path, files)
    desired = (await load_worktree(tmp_path)).desired
    assert desired is not None
    assert desired.instances["one"].spec.package.version == "1.10.0"


async def test_an_unknown_builtin_is_named(tmp_path: Path) -> None:
    package = BASE["packages.yaml"].replace("{path: packages/sleeper}", "{builtin: not-there}")
    lay(tmp_path, {**GOOD, "packages.yaml": package})
    assert [p.code for p in (await load_worktree(tmp_path)).problems] == ["PKG_MISSING"]


# ------------------------------------------------------------------------------------------- packages by URL

ZIP = pack({"manifest.json": (MANIFEST.encode(), False)})
SHA = hashlib.sha256(ZIP).hexdigest()


@pytest.fixture
def server() -> Iterator[str]:
    class Serves(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            places = {"/same": "/p.zip", "/elsewhere": "http://169.254.169.254/p.zip", "/loop": "/loop"}
            self.send_response(302 if self.path in places else 200 if self.path == "/p.zip" else 404)
            if self.path in places:
                self.send_header("location", places[self.path])
            self.send_header("content-length", str(len(ZIP)) if self.path == "/p.zip" else "0")
            self.end_headers()
            if self.path == "/p.zip":
                self.wfile.write(ZIP)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Serves)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def from_url(url: str, sha256: str = SHA) -> dict[str, str | None]:
    package = BASE["packages.yaml"].replace("{path: packages/sleeper}", f"{{url: '{url}', sha256: '{sha256}'}}")
    cluster = CLUSTER + "  source: {packageHosts: [localhost]}\n"
    return {**GOOD, "cluster.yaml": cluster, "packages.yaml": package, "packages/sleeper/manifest.json": None}


async def test_a_package_by_url_file_and_path_has_the_digest_of_its_content(tmp_path: Path, server: str) -> None:
    (tmp_path / "p.zip").write_bytes(ZIP)
    digests = set()
    for number, url in enumerate(
        [f"{server}/p.zip", f"{server}/same", f"file://{tmp_path}/p.zip", f"{tmp_path}/p.zip"]
    ):
        lay(tmp_path / str(number), from_url(url))
        checked = await load_worktree(tmp_path / str(number))
        assert checked.desired is not None, checked.problems
        digests.add(checked.desired.instances["one"].spec.package.digest)
    lay(tmp_path / "path", dict(GOOD))
    checked = await load_worktree(tmp_path / "path")
    assert checked.desired is not None
    assert digests == {checked.desired.instances["one"].spec.package.digest}


@pytest.mark.parametrize(
    ("path", "sha", "code"),
    [
        ("/elsewhere", SHA, "PKG_FETCH"),
        ("/loop", SHA, "PKG_FETCH"),
        ("/missing", SHA, "PKG_FETCH"),
        ("/p.zip", "0" * 64, "PKG_DIGEST_MISMATCH"),
    ],
)
async def test_wrong_answers_leave_nothing_behind(path: str, sha: str, code: str, tmp_path: Path, server: str) -> None:
    with pytest.raises(TdieError) as caught:
        await download(Download(server + path, sha), tmp_path / "target")
    assert caught.value.code == code
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0", "fe80::1", "224.0.0.1"]
)
def test_tricky_addresses_are_refused(address: str) -> None:
    assert refused_address(address, "packages.example.org")


def test_the_machine_itself_only_by_its_own_name() -> None:
    assert refused_address("127.0.0.1", "localhost") == ""
    assert refused_address("10.1.2.3", "packages.example.org") == ""


def test_a_change_to_what_is_no_document_changes_nothing(tmp_path: Path) -> None:
    resolver, root = Resolver(Shelf(tmp_path / "c")), tmp_path / "r"
    lay(root, {**GOOD, ".tdieignore": "drafts/\n"})
    first = resolver.resolve(lay(root, {"drafts/x.yaml": instance("x")}), Commit("1")).desired
    second = resolver.resolve(lay(root, {"drafts/x.yaml": instance("x", "wave: 1")}), Commit("2")).desired
    assert first is not None
    assert second is not None
    assert set(second.instances) == {"one"}
    assert second.cluster is first.cluster
