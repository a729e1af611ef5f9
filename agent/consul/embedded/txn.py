"""Transactions of the embedded store: every condition is tried, and either all operations happen or none."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.consul.embedded.state import Entry, Rejected

if TYPE_CHECKING:
    from agent.consul.embedded.keys import Keys

MAX_OPS = 64


@dataclass(frozen=True, slots=True)
class Op:
    """One operation with Consul's verbs."""

    verb: str
    key: str
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""


class TxnFailed(Exception):
    """Nothing happened; (number of the operation, why) for each that could not be done."""

    def __init__(self, errors: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(f"{at}: {why}" for at, why in errors))
        self.errors = errors


class _Cannot(Exception):
    """Why one operation cannot be done."""


def run(store: Keys, ops: list[Op]) -> list[Entry]:
    """The entries the operations read or wrote (written ones without their value, as Consul answers)."""
    if len(ops) > MAX_OPS:
        raise Rejected(413, f"Transaction contains too many operations ({len(ops)} > {MAX_OPS})")
    if any(len(op.value) > 512 * 1024 for op in ops):
        raise Rejected(413, "Value is too large, max size: 524288 bytes")
    results: list[Entry] = []
    errors: list[tuple[int, str]] = []
    trial = _trial(store)
    for at, op in enumerate(ops):
        try:
            results += _do(trial, op)
        except _Cannot as error:
            errors.append((at, str(error)))
    if errors:
        raise TxnFailed(errors)
    results = []
    base, store.one_index = store.index, store.index + 1
    try:
        for op in ops:
            results += _do(store, op)
    finally:
        store.one_index = None
    assert store.index <= base + 1
    return results


def _trial(store: Keys) -> Keys:
    """A copy on which the operations may fail halfway; it shares the sessions and saves nothing."""
    trial = copy.copy(store)
    trial.detach()
    trial.one_index = store.index + 1
    return trial


def _do(store: Keys, op: Op) -> list[Entry]:
    held = store.entries.get(op.key)
    done = True
    if op.verb in ("set", "cas"):
        done = store.put(op.key, op.value, op.flags, op.index if op.verb == "cas" else None)
        why = f'failed to set key "{op.key}", index is stale'
    elif op.verb in ("lock", "unlock"):
        done, why = _lock(store, op)
    elif op.verb in ("delete", "delete-cas"):
        if op.verb == "delete-cas" and held is not None and op.index != held.modify:
            raise _Cannot(f'failed to delete key "{op.key}", index is stale')
        store.delete(op.key)
        return []
    elif op.verb == "delete-tree":
        store.delete_tree(op.key)
        return []
    elif op.verb == "get-tree":
        return [copy.copy(entry) for entry in store.below(op.key)]
    elif op.verb == "check-not-exists":
        if held is not None:
            raise _Cannot(f'key "{op.key}" exists')
        return []
    elif op.verb in ("get", "check-session", "check-index"):
        return [_read(op, held)]
    else:
        raise _Cannot(f'unknown KV verb "{op.verb}"')
    if not done:
        raise _Cannot(why)
    return [_bare(store.entries[op.key])]


def _lock(store: Keys, op: Op) -> tuple[bool, str]:
    try:
        if op.verb == "lock":
            late = " due to lock delay" if store.delayed(op.key) else ", lock is already held"
            return store.acquire(op.key, op.value, op.session, op.flags), f'failed to lock key "{op.key}"{late}'
        why = f'failed to unlock key "{op.key}", lock isn\'t held, or is held by another session'
        return store.release(op.key, op.value, op.session, op.flags), why
    except Rejected as error:
        raise _Cannot(error.text) from error


def _read(op: Op, held: Entry | None) -> Entry:
    if held is None:
        what = {"get": "key", "check-session": "failed session check for key"}.get(
            op.verb, "failed index check for key"
        )
        raise _Cannot(f'{what} "{op.key}"' + (" doesn't exist" if op.verb == "get" else ", doesn't exist"))
    if op.verb == "get":
        return copy.copy(held)
    if op.verb == "check-session" and held.session != op.session:
        raise _Cannot(f'failed session check for key "{op.key}", current session "{held.session}" != "{op.session}"')
    if op.verb == "check-index" and held.modify != op.index:
        raise _Cannot(f'failed index check for key "{op.key}", current modify index {held.modify} != {op.index}')
    return _bare(held)


def _bare(entry: Entry) -> Entry:
    bare = copy.copy(entry)
    bare.value = b""
    return bare
