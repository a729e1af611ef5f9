"""A controller whose disk is full keeps the last good commit, says DISK_FULL, and goes on once there is room. FAULTS row 44."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.source.source import GitSource
from tests.disk_trouble import Filler, small_disk
from tests.reconciler.source.repos import BASE, MANIFEST, PACKAGES, Repo, instance

BIG = {f"notes/{number}.md": f"{number} " * 2000 for number in range(20)}  # so that a fetch needs some room


@pytest.mark.timeout(120)
async def test_at_any_moment(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "repo")
    small = tmp_path / "small"
    small.mkdir()
    codes: set[str] = set()
    with small_disk(small, "4m"):
        disk = Filler(small)

        def follow() -> GitSource:
            return GitSource(str(repo.origin), mirror_dir=small / "mirror", cache_dir=small / "cache")

        source = follow()
        good = repo.commit({**BASE, "one.yaml": instance("one")})
        assert (await source.look()).desired is not None
        for pages in range(40):
            version = f"1.0.{pages + 1}"
            disk.fill(pages)
            wanted = repo.commit(
                {
                    "packages.yaml": PACKAGES.replace("1.0.0", version),
                    "packages/sleeper/manifest.json": MANIFEST.replace("1.0.0", version),
                    "one.yaml": instance("one", package=f"sleeper@{version}"),
                    "more.md": f"{version} " * 3000,
                }
            )
            for _ in range(2):
                seen = await source.look()
                assert seen.desired is not None
                if seen.trouble is not None:
                    assert seen.desired.commit == good
                    codes.add(seen.trouble.code)
            if pages % 2:
                await source.close()
                source = follow()  # another controller starts while there is no room
                await source.start_from(good)
                seen = await source.look()
                assert seen.desired is not None
                assert seen.desired.commit in (good, wanted)
            disk.empty()
            seen = await source.look()
            assert seen.desired is not None
            assert (seen.trouble, seen.desired.commit, seen.problems) == (None, wanted, ())
            good = wanted
        assert (await source.load(good)).problems == ()
        await source.close()
    assert codes == {"DISK_FULL"}
