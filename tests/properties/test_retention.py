"""Whatever is installed, used and proven: what runs and what a rollback needs is never deleted (FAULTS 53)."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from agent.packages.protocol import Installed
from agent.packages.retention import collectable
from agent.wire import PackageRef


@dataclass(frozen=True)
class Machine:
    """Versions of a few packages on one machine, told by small numbers."""

    installed: dict[str, Installed]
    in_use: frozenset[str]
    current: dict[str, float]
    good: dict[str, float]
    keep: int

    def dropped(self) -> set[str]:
        return set(collectable(self.installed, self.in_use, self.keep, current=self.current, good=self.good))

    def names(self) -> set[str]:
        return {item.package.name for item in self.installed.values()}

    def of(self, name: str) -> list[str]:
        return [digest for digest, item in self.installed.items() if item.package.name == name]


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    moments = st.integers(0, 6).map(float)  # few, so that many are equal
    installed = {}
    for name in draw(st.lists(st.sampled_from("abc"), unique=True)):
        for version in range(draw(st.integers(0, 9))):
            digest = f"{name}{version}"
            package = PackageRef(name=name, version=f"{version}.0.0", digest=digest)
            installed[digest] = _installed(package, draw(moments))
    some = st.frozensets(st.sampled_from(sorted(installed))) if installed else st.just(frozenset[str]())
    return Machine(
        installed,
        draw(some),
        {digest: draw(moments) for digest in draw(some)},
        {digest: draw(moments.filter(bool)) for digest in draw(some)},
        draw(st.integers(0, 8)),
    )


def _installed(package: PackageRef, at: float) -> Installed:
    return Installed(package, f"/nowhere/{package.digest}", installed_at=at)


@given(machines())
def test_what_runs_is_never_deleted(machine: Machine) -> None:
    assert not machine.dropped() & machine.in_use


@given(machines())
def test_the_last_two_good_versions_of_each_name_are_never_deleted(machine: Machine) -> None:
    dropped = machine.dropped()
    for name in machine.names():
        good = sorted((machine.good[d] for d in machine.of(name) if d in machine.good), reverse=True)
        for digest in set(machine.of(name)) & machine.good.keys() & dropped:
            better = sum(at > machine.good[digest] for at in good)
            equal = sum(at == machine.good[digest] for at in good) - 1
            assert better + equal >= 2, "one of the last two that ran well"


@given(machines())
def test_as_many_stay_as_are_to_be_kept_and_no_more_than_there_is_a_reason_for(machine: Machine) -> None:
    dropped = machine.dropped()
    for name in machine.names():
        versions = set(machine.of(name))
        left = versions - dropped
        least = max(2, machine.keep)
        assert len(left) >= min(len(versions), least)
        reasons = least + 2 + len(versions & machine.in_use)
        assert len(left) <= reasons


@given(machines())
def test_deleting_again_deletes_nothing_more(machine: Machine) -> None:
    dropped = machine.dropped()
    left = {digest: item for digest, item in machine.installed.items() if digest not in dropped}
    after = Machine(left, machine.in_use - dropped, machine.current, machine.good, machine.keep)
    assert after.dropped() == set()
