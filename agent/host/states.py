"""The seven states of a host, and which call leads where. README.md shows the same table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from agent.errors import Refused


class HostState(StrEnum):
    AWAITING_CONFIGURATION = "AwaitingConfiguration"
    CONFIGURED = "Configured"
    STARTED = "Started"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    ERRORED = "Errored"
    DESTROYED = "Destroyed"


class Call(StrEnum):
    """What can be asked of a host, and what can happen to it."""

    CONFIGURE = "configure"
    START = "start"
    STOP = "stop"
    STOPPED = "stopped"  # the end of a stop
    FAIL = "fail"
    AWAIT = "await"  # a publisher is set up, and the component is not
    DESTROY = "destroy"


TRANSITIONS: Mapping[tuple[HostState, Call], HostState] = {
    (HostState.AWAITING_CONFIGURATION, Call.CONFIGURE): HostState.CONFIGURED,
    (HostState.AWAITING_CONFIGURATION, Call.AWAIT): HostState.AWAITING_CONFIGURATION,
    (HostState.AWAITING_CONFIGURATION, Call.FAIL): HostState.ERRORED,
    (HostState.AWAITING_CONFIGURATION, Call.DESTROY): HostState.DESTROYED,
    (HostState.CONFIGURED, Call.CONFIGURE): HostState.CONFIGURED,
    (HostState.CONFIGURED, Call.START): HostState.STARTED,
    (HostState.CONFIGURED, Call.FAIL): HostState.ERRORED,
    (HostState.CONFIGURED, Call.DESTROY): HostState.DESTROYED,
    (HostState.STARTED, Call.STOP): HostState.STOPPING,
    (HostState.STARTED, Call.FAIL): HostState.ERRORED,
    (HostState.STOPPING, Call.START): HostState.STARTED,  # only the component had been stopped
    (HostState.STOPPING, Call.STOP): HostState.STOPPING,
    (HostState.STOPPING, Call.STOPPED): HostState.STOPPED,
    (HostState.STOPPING, Call.FAIL): HostState.ERRORED,
    (HostState.STOPPING, Call.DESTROY): HostState.DESTROYED,
    (HostState.STOPPED, Call.CONFIGURE): HostState.CONFIGURED,
    (HostState.STOPPED, Call.FAIL): HostState.ERRORED,  # new settings do not fit
    (HostState.STOPPED, Call.DESTROY): HostState.DESTROYED,
    (HostState.ERRORED, Call.CONFIGURE): HostState.CONFIGURED,
    (HostState.ERRORED, Call.AWAIT): HostState.AWAITING_CONFIGURATION,
    (HostState.ERRORED, Call.FAIL): HostState.ERRORED,  # set up anew, and wrong again
    (HostState.ERRORED, Call.DESTROY): HostState.DESTROYED,
}


ASKED = (Call.CONFIGURE, Call.START, Call.STOP, Call.DESTROY)
"""Calls that people make; the others happen."""


class WrongState(Refused):
    """The call makes no sense in the state the host is in."""

    code = "WRONG_STATE"


def after(state: HostState, call: Call) -> HostState:
    """The state that follows. WrongState (409) names the state and the calls it allows."""
    try:
        return TRANSITIONS[state, call]
    except KeyError:
        allowed = ", ".join(c for (s, c) in TRANSITIONS if s is state and c in ASKED) or "nothing"
        raise WrongState(f"{call} is not possible in state {state}; allowed: {allowed}") from None
