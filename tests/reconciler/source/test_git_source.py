"""Following a real repository: only a good commit that goes forward is ever in force."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pygit2
import pytest
import trustme

from agent.errors import Invalid, Missing
from agent.packages.digest import content_digest
from reconciler.source.access import Access, FetchLimits
from reconciler.source.source import GitSource
from reconciler.source.validate import load_worktree
from tests.reconciler.source.repos import BASE, CLUSTER, GOOD, PACKAGES, Repo, git, instance

Follow = Callable[..., GitSource]


async def test_a_good_commit_is_in_force_and_nothing_new_is_the_same_object(repo: Repo, follow: Follow) -> None:
    commit = repo.commit(GOOD, "first line\n\nmore")
    source = follow(repo.origin)
    first = await source.look()
    assert first.desired is not None
    assert (first.desired.commit, first.desired.subject, first.desired.author) == (commit, "first line", "Tester")
    assert await source.look() is first
    assert (await source.look(fetch=False)) is first


async def test_the_package_can_be_served_and_is_what_its_digest_says(repo: Repo, follow: Follow) -> None:
    repo.commit({**GOOD, "packages/sleeper/docs/a.txt": "hello"})
    source = follow(repo.origin)
    desired = (await source.look()).desired
    assert desired is not None
    digest = desired.instances["one"].spec.package.digest
    path = source.package_zip(digest)
    assert path is not None
    with zipfile.ZipFile(path) as archive:
        content = {e.filename: (archive.read(e), bool(e.external_attr >> 16 & 0o100)) for e in archive.infolist()}
    assert set(content) == {"manifest.json", "docs/a.txt"}
    assert content_digest(content) == digest
    assert source.package_zip("../../etc/passwd") is None


async def test_a_bad_commit_leaves_the_last_good_one_and_the_next_good_one_applies(repo: Repo, follow: Follow) -> None:
    good = repo.commit(GOOD)
    source = follow(repo.origin)
    before = await source.look()
    bad = repo.commit({"one.yaml": instance("one", "colour: red\nwave: x")})
    looked = await source.look()
    assert looked.desired is before.desired
    assert (looked.commit, looked.trouble) == (bad, None)
    assert [str(p).split(" ")[:2] for p in looked.problems] == [
        ["one.yaml:7:3", "UNKNOWN_FIELD"],
        ["one.yaml:8:9", "WRONG_TYPE"],
    ]
    assert await source.look() is looked
    git("revert", "--no-edit", "HEAD", cwd=repo.work)
    repo.push()
    healed = await source.look()
    assert healed.desired is not None
    assert healed.problems == ()
    assert healed.desired.commit not in (good, bad)
    assert before.desired is not None
    assert healed.desired.instances["one"] is before.desired.instances["one"]


async def test_dependencies_are_taken_over_and_a_wrong_one_is_named(repo: Repo, follow: Follow) -> None:
    manifest = '{"name": "sleeper", "version": "1.0.0", "componentType": "part:Part", "dependencies": ["%s"]}'
    part = {"packages/sleeper/part.py": ""}
    repo.commit({**GOOD, **part, "packages/sleeper/manifest.json": manifest % "lib==1.0; python_version > '3'"})
    source = follow(repo.origin)
    assert (await source.look()).desired is not None
    repo.commit({"packages/sleeper/manifest.json": manifest % "lib @ https://example.org/lib.whl"})
    problems = (await source.look()).problems
    assert [(p.code, "names a place" in str(p)) for p in problems] == [("PKG_DEPENDENCY", True)]


async def test_an_upload_that_nobody_can_be_asked_for(repo: Repo, follow: Follow) -> None:
    upload = PACKAGES.replace("path: packages/sleeper", f"digest: {'ab' * 32}")
    repo.commit({**GOOD, "packages.yaml": upload})
    looked = await follow(repo.origin).look()
    assert (looked.desired, looked.trouble and looked.trouble.code) == (None, "PACKAGE_MISSING")
    assert (await load_worktree(repo.work)).problems == ()  # `tdie validate` knows no controller: nothing is said of it


async def test_zero_instances_are_not_empty_but_a_mistake(repo: Repo, follow: Follow) -> None:
    repo.commit(GOOD)
    source = follow(repo.origin)
    before = (await source.look()).desired
    repo.commit({"one.yaml": None})
    looked = await source.look()
    assert looked.desired is before
    assert [p.code for p in looked.problems] == ["EMPTY_DESIRED_STATE"]
    repo.commit({"cluster.yaml": CLUSTER + "  source: {allowEmpty: true}\n"})
    allowed = (await source.look()).desired
    assert allowed is not None
    assert allowed.instances == {}


async def test_rewritten_history_is_held_until_accepted(repo: Repo, follow: Follow) -> None:
    repo.commit(GOOD)
    source = follow(repo.origin)
    before = (await source.look()).desired
    git("commit", "-q", "--amend", "-m", "rewritten", cwd=repo.work)
    repo.push("-f")
    held = await source.look()
    assert held.desired is before
    assert held.trouble is not None
    assert held.trouble.code == "GIT_NON_FF"
    assert held.since is not None
    assert await source.look() is held
    await source.accept(repo.head())
    after = await source.look()
    assert after.trouble is None
    assert after.desired is not None
    assert after.desired.commit == repo.head()


async def test_allow_force_counts_only_once_it_is_in_force(repo: Repo, follow: Follow) -> None:
    repo.commit(GOOD)
    source = follow(repo.origin)
    await source.look()
    allowing = CLUSTER + "  source: {allowForce: true}\n"
    repo.write({"cluster.yaml": allowing})
    git("commit", "-q", "-a", "--amend", "-m", "allows itself", cwd=repo.work)
    repo.push("-f")
    held = await source.look()
    assert held.trouble is not None
    await source.accept(repo.head())
    await source.look()
    git("commit", "-q", "--amend", "-m", "again", cwd=repo.work)
    repo.push("-f")
    after = await source.look()
    assert after.trouble is None
    assert after.commit == repo.head()


async def test_deleted_branch_empty_and_vanished_repository(repo: Repo, follow: Follow, tmp_path: Path) -> None:
    source = follow(repo.origin)
    empty = await source.look()
    assert empty.desired is None
    assert empty.trouble is not None
    assert (empty.trouble.code, "empty" in str(empty.trouble)) == ("GIT_REF_MISSING", True)
    repo.commit(GOOD)
    good = await source.look()
    assert good.trouble is None
    git("push", "-q", "origin", "HEAD:refs/heads/other", cwd=repo.work)
    git("update-ref", "-d", "refs/heads/main", cwd=repo.origin)
    gone = await source.look()
    assert gone.trouble is not None
    assert (gone.trouble.code, "other" in str(gone.trouble)) == ("GIT_REF_MISSING", True)
    assert gone.desired is good.desired
    repo.origin.rename(tmp_path / "away")
    away = await source.look()
    assert away.trouble is not None
    assert away.trouble.code == "GIT_UNREACHABLE"
    assert away.desired is good.desired
    assert await source.look() is away
    (tmp_path / "away").rename(repo.origin)
    repo.push()
    back = await source.look()
    assert back.trouble is None
    assert back.desired is good.desired


async def test_symlinks_and_submodules_are_refused_wherever_they_are(repo: Repo, follow: Follow) -> None:
    repo.write(dict(GOOD))
    (repo.work / "link.yaml").symlink_to("/etc/passwd")
    (repo.work / "packages/sleeper/escape").symlink_to("../../..")
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module", cwd=repo.work)
    git("add", "cluster.yaml", "packages.yaml", "packages", "one.yaml", "link.yaml", cwd=repo.work)
    git("commit", "-q", "-m", "links", cwd=repo.work)
    repo.push()
    looked = await follow(repo.origin).look()
    assert looked.desired is None
    found = {(p.file, p.code) for p in looked.problems}
    assert {(f, "UNSUPPORTED_TREE_ENTRY") for f in ("link.yaml", "module", "packages/sleeper/escape")} <= found


def loose_objects(repository: Path) -> list[Path]:
    return [f for f in (repository / "objects").glob("??/*") if len(f.name) == 38]


async def test_a_damaged_mirror_is_replaced(repo: Repo, follow: Follow, tmp_path: Path) -> None:
    repo.commit(GOOD)
    first = follow(repo.origin, "m")
    await first.look()
    await first.close()
    mirror = tmp_path / "m" / "mirror.git"
    for file in [*loose_objects(mirror), *(mirror / "objects" / "pack").glob("*.pack")]:
        file.chmod(0o644)
        data = bytearray(file.read_bytes())
        for at in range(len(data) // 3, len(data)):
            data[at] ^= 0xFF
        file.write_bytes(bytes(data))
    second = follow(repo.origin, "m")
    looked = await second.look()
    assert looked.trouble is None
    assert looked.desired is not None


@pytest.mark.parametrize(
    ("suffix", "place"),
    [
        ("pack", 1), ("pack", 7), ("pack", 12), ("pack", 20), ("pack", -40), ("pack", -5),
        ("idx", 1), ("idx", 7), ("idx", 8 + 255 * 4 + 3), ("idx", 8 + 256 * 4 + 5), ("idx", -60), ("idx", -5),
    ],
)  # fmt: skip
async def test_any_kind_of_byte_flipped_in_a_pack_costs_only_a_new_clone(
    repo: Repo, follow: Follow, tmp_path: Path, suffix: str, place: int
) -> None:
    repo.commit(GOOD)
    first = follow(repo.origin, "m")
    good = (await first.look()).desired
    await first.close()
    mirror = tmp_path / "m" / "mirror.git"
    git("repack", "-a", "-d", "-q", cwd=mirror)
    (file,) = (mirror / "objects" / "pack").glob(f"*.{suffix}")
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[place] ^= 0x55
    file.write_bytes(bytes(data))
    looked = await follow(repo.origin, "m").look()
    assert looked.trouble is None
    assert good is not None
    assert looked.desired is not None
    assert looked.desired.instances == good.instances


async def test_a_damaged_origin_keeps_what_is_in_force(repo: Repo, follow: Follow) -> None:
    repo.commit(GOOD)
    source = follow(repo.origin)
    good = (await source.look()).desired
    before = set(loose_objects(repo.origin))
    repo.commit({"one.yaml": instance("one", "wave: 1")})
    for file in set(loose_objects(repo.origin)) - before:
        file.chmod(0o644)
        file.write_bytes(b"damaged")
    looked = await source.look()
    assert looked.desired is good
    assert looked.trouble is not None
    assert looked.trouble.code in ("GIT_CORRUPT", "GIT_UNREACHABLE")


async def test_a_lock_left_behind_does_not_stop_the_source(repo: Repo, follow: Follow, tmp_path: Path) -> None:
    repo.commit(GOOD)
    source = follow(repo.origin, "m")
    await source.look()
    (tmp_path / "m/mirror.git/refs/tdie/tip.lock").write_text("")
    commit = repo.commit({"one.yaml": instance("one", "wave: 1")})
    looked = await source.look()
    assert looked.trouble is None
    assert looked.commit == commit


async def test_a_restarted_controller_resumes_from_the_recorded_commit(repo: Repo, follow: Follow) -> None:
    good = repo.commit(GOOD)
    repo.commit({"one.yaml": "broken: ["})
    source = follow(repo.origin)
    await source.start_from(good)
    looked = await source.look()
    assert looked.desired is not None
    assert looked.desired.commit == good
    assert looked.problems
    lost = follow(repo.origin, "lost")
    await lost.start_from("1" * 40)
    held = await lost.look()
    assert held.desired is None
    assert held.trouble is not None
    assert held.trouble.code == "GIT_NON_FF"


async def test_any_revision_can_be_loaded_without_touching_what_is_in_force(repo: Repo, follow: Follow) -> None:
    first = repo.commit(GOOD)
    repo.commit({"two.yaml": instance("two")})
    git("push", "-q", "origin", "HEAD~1:refs/heads/feature/x", cwd=repo.work)
    source = follow(repo.origin)
    looked = await source.look()
    for revision in ("HEAD~1", first, first[:8], "feature/x"):
        loaded = await source.load(revision)
        assert loaded.desired is not None
        assert (loaded.commit, set(loaded.desired.instances)) == (first, {"one"})
    assert await source.look() is looked
    for unknown in ("nothing", "f" * 40, "HEAD~9", "--upload-pack=x", "HEAD:cluster.yaml", "main..x", ""):
        with pytest.raises(Missing):
            await source.load(unknown)


async def test_a_push_is_seen_at_once(repo: Repo, follow: Follow) -> None:
    repo.commit(GOOD)
    source = follow(repo.origin)
    await source.look()
    for step in range(3):
        waiting = asyncio.create_task(source.changed())
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done, "nothing moved, so nothing is told"
        await asyncio.to_thread(repo.commit, {"one.yaml": instance("one", f"wave: {step}")})
        await asyncio.wait_for(waiting, 5)
        assert (await source.look()).commit == repo.head()
    git("pack-refs", "--all", cwd=repo.origin)
    await asyncio.wait_for(source.changed(), 5)
    await source.look()
    commit = git("rev-parse", "HEAD~1", cwd=repo.work)
    git("update-ref", "refs/heads/main", commit, cwd=repo.origin)
    await asyncio.wait_for(source.changed(), 5)


async def test_a_subfolder_can_hold_the_documents(repo: Repo, follow: Follow) -> None:
    repo.commit({**{f"prod/{k}": v for k, v in GOOD.items()}, "test/x.yaml": "a: 1\n"})
    looked = await follow(repo.origin, subdir="prod").look()
    assert looked.desired is not None
    missing = await follow(repo.origin, "other", subdir="nowhere").look()
    assert missing.trouble is not None
    assert missing.trouble.code == "PATH_MISSING"


async def test_too_much_is_refused_while_it_comes_in(repo: Repo, follow: Follow) -> None:
    repo.commit(
        {**BASE, "one.yaml": instance("one"), "big.bin": "".join(chr(33 + (i * 7919) % 90) for i in range(200_000))}
    )
    looked = await follow(repo.origin, limits=FetchLimits(bytes=1000)).look()
    assert looked.trouble is not None
    assert looked.trouble.code == "GIT_TOO_LARGE"


@pytest.mark.parametrize("url", ["http://x/y", "git://x/y", "ext::sh -c id", "ftp://x", "file://other/x", "", "fd::7"])
def test_other_ways_to_a_repository_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        GitSource(url, mirror_dir=tmp_path / "m", cache_dir=tmp_path / "c")


# ------------------------------------------------------------------------------------------------- over TLS


class Serves(BaseHTTPRequestHandler):
    """The dumb side of smart HTTP: `git http-backend` behind Python's server."""

    root = Path()

    def do_GET(self) -> None:
        self._backend(b"")

    def do_POST(self) -> None:
        self._backend(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _backend(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        env = {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
        }
        done = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, timeout=20, check=True)
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().splitlines()]
        status = next((int(value[:3]) for name, value in lines if name == "Status"), 200)
        self.send_response(status)
        for name, value in lines:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("content-length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def https(repo: Repo, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A repository over https, and the file of the authority that signed its certificate."""
    authority = trustme.CA()
    authority_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(authority_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Serves,), {"root": repo.origin.parent}))
    server.handle_error = lambda request, client: None  # type: ignore[method-assign,assignment]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://localhost:{server.server_port}/origin.git", authority_file
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the server here")
async def test_https_is_trusted_only_with_its_authority(repo: Repo, follow: Follow, https: tuple[str, Path]) -> None:
    commit = repo.commit(GOOD)
    url, authority = https
    stranger = await follow(url, "stranger").look()
    assert stranger.trouble is not None
    assert stranger.trouble.code == "GIT_UNREACHABLE"
    assert stranger.desired is None
    try:
        known = await follow(url, "known", access=Access(ca_file=authority)).look()
    finally:
        pygit2.settings.set_ssl_cert_locations("/etc/ssl/certs/ca-certificates.crt", None)
    assert known.trouble is None
    assert known.commit == commit


async def test_a_stalled_server_is_cut_and_its_password_is_never_shown(follow: Follow) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        started = time.monotonic()
        access = Access(connect_timeout=0.5, timeout=0.5)
        looked = await follow(f"https://user:canary@127.0.0.1:{port}/x.git", access=access).look()
        assert time.monotonic() - started < 10
    assert looked.trouble is not None
    assert looked.trouble.code == "GIT_UNREACHABLE"
    assert "canary" not in str(looked.trouble)
