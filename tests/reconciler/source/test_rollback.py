"""A rollback against a real repository: an earlier commit is in force until the branch has a newer one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from reconciler.model.rollback import Rollback, roll_back
from reconciler.source.source import GitSource
from tests.reconciler.source.repos import GOOD, Repo, git, instance

Follow = Callable[..., GitSource]


@dataclass
class Story:
    """Three good commits; the third is in force."""

    repo: Repo
    source: GitSource
    commits: list[str] = field(default_factory=list)

    def to(self, number: int, before: Rollback | None = None) -> Rollback:
        left = self.commits[2] if before is None else before.to
        return roll_back(before, left, self.repo.head(), self.commits[number], who="ann", why="", at="")


@pytest.fixture
async def story(repo: Repo, follow: Follow) -> Story:
    made = Story(repo, follow(repo.origin))
    made.commits.append(repo.commit(GOOD))
    for wave in (1, 2):
        made.commits.append(repo.commit({"one.yaml": instance("one", f"wave: {wave}")}))
    desired = (await made.source.look()).desired
    assert desired is not None
    assert desired.commit == made.commits[2]
    return made


async def test_it_is_in_force_and_the_tip_is_not(story: Story) -> None:
    back = story.to(0)
    looked = await story.source.look(rollback=back)
    assert looked.desired is not None
    assert (looked.desired.commit, looked.commit, looked.rollback) == (story.commits[0], story.commits[2], back)
    assert looked.problems == ()
    assert looked.trouble is None
    assert await story.source.look(rollback=back) is looked


async def test_one_further_back_and_forward_again(story: Story) -> None:
    first = story.to(1)
    await story.source.look(rollback=first)
    second = story.to(0, first)
    looked = await story.source.look(rollback=second)
    assert looked.desired is not None
    assert looked.desired.commit == story.commits[0]
    third = story.to(1, second)
    looked = await story.source.look(rollback=third)
    assert looked.desired is not None
    assert looked.desired.commit == story.commits[1]


async def test_a_new_controller_obeys_it_too(story: Story, follow: Follow) -> None:
    back = story.to(1)
    other = follow(story.repo.origin, "other")
    await other.start_from(story.commits[1])
    looked = await other.look(rollback=back)
    assert looked.desired is not None
    assert (looked.desired.commit, looked.rollback) == (story.commits[1], back)


async def test_a_newer_good_commit_ends_it_even_while_the_record_still_asks_for_it(story: Story) -> None:
    back = story.to(0)
    await story.source.look(rollback=back)
    newer = story.repo.commit({"one.yaml": instance("one", "wave: 3")})
    for _ in range(2):
        looked = await story.source.look(rollback=back)
        assert looked.desired is not None
        assert (looked.desired.commit, looked.rollback) == (newer, None)
    assert await story.source.look() is looked


async def test_a_newer_bad_commit_does_not(story: Story) -> None:
    back = story.to(0)
    await story.source.look(rollback=back)
    bad = story.repo.commit({"one.yaml": instance("one", "colour: red")})
    looked = await story.source.look(rollback=back)
    assert looked.desired is not None
    assert (looked.desired.commit, looked.commit, looked.rollback) == (story.commits[0], bad, back)
    assert looked.problems
    git("revert", "--no-edit", "HEAD", cwd=story.repo.work)
    story.repo.push()
    looked = await story.source.look(rollback=back)
    assert looked.desired is not None
    assert (looked.desired.commit, looked.rollback) == (story.repo.head(), None)


async def test_one_that_comes_with_a_bad_tip_goes_back_all_the_same(story: Story) -> None:
    bad = story.repo.commit({"one.yaml": instance("one", "colour: red")})
    assert (await story.source.look()).problems
    back = story.to(0)
    assert back.quarantined == {story.commits[2], bad}
    looked = await story.source.look(rollback=back)
    assert looked.desired is not None
    assert (looked.desired.commit, looked.commit) == (story.commits[0], bad)


async def test_taken_back_the_tip_is_in_force(story: Story) -> None:
    await story.source.look(rollback=story.to(0))
    looked = await story.source.look()
    assert looked.desired is not None
    assert (looked.desired.commit, looked.rollback, looked.trouble) == (story.commits[2], None, None)


async def test_history_must_go_on_from_what_was_reached(story: Story) -> None:
    back = story.to(0)
    before = await story.source.look(rollback=back)
    git("reset", "-q", "--hard", story.commits[1], cwd=story.repo.work)
    story.repo.push("-f")
    held = await story.source.look(rollback=back)
    assert held.trouble is not None
    assert (held.desired, held.trouble.code, held.rollback) == (before.desired, "GIT_NON_FF", back)
    git("reset", "-q", "--hard", story.commits[0], cwd=story.repo.work)
    story.repo.push("-f")
    same = await story.source.look(rollback=back)  # the branch itself went back to what runs: nothing is held
    assert same.desired is not None
    assert (same.desired.commit, same.trouble, same.rollback) == (story.commits[0], None, None)


async def test_what_cannot_be_read_runs_nothing_rather_than_what_was_left(story: Story) -> None:
    lost = Rollback("1" * 40, story.commits[2], story.commits[2], frozenset({story.commits[2]}), "ann")
    for _ in range(2):
        looked = await story.source.look(rollback=lost)
        assert looked.desired is None
        assert looked.trouble is not None
    looked = await story.source.look(rollback=story.to(1))
    assert looked.desired is not None
    assert looked.desired.commit == story.commits[1]


async def test_unreachable_git_does_not_end_it(story: Story) -> None:
    back = story.to(0)
    before = await story.source.look(rollback=back)
    story.repo.origin.rename(story.repo.origin.with_name("away"))
    looked = await story.source.look(rollback=back)
    assert looked.trouble is not None
    assert (looked.desired, looked.rollback, looked.trouble.code) == (before.desired, back, "GIT_UNREACHABLE")


async def test_only_what_came_before_is_earlier(story: Story) -> None:
    first, second, third = story.commits
    assert await story.source.is_earlier(first, third)
    assert not await story.source.is_earlier(third, second)
    assert not await story.source.is_earlier(second, second)
    assert not await story.source.is_earlier("1" * 40, second)
