"""`python -m agent.zygote`: started by the keeper with a socket as standard input; ends when nobody holds the other end."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping

from agent.keeper import linux
from agent.zygote import holes, hot, image
from agent.zygote.child import become_host
from agent.zygote.guard import Guard

REHEARSE = "--rehearse"  # only see whether everything can be imported
LARGEST = 1 << 16
MOST_FDS = 8


def main() -> None:
    """Fork a host for every request until the keeper is gone; what was under a lease goes with it."""
    if REHEARSE in sys.argv:
        image.warm()
        return
    control = socket.socket(fileno=os.dup(0))
    _point_stdin_nowhere()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    linux.spare_no_more()
    image.warm()
    sys.dont_write_bytecode = True
    image.rehearse()
    gc.collect()
    holes.fill()
    hot.gather(hot.seen_by(lambda: image.rehearse(1)))
    image.rehearse()
    sys.dont_write_bytecode = False
    room = image.Room.of_this_process()
    linux.set_name("tdie-zygote")
    gc.collect()
    gc.disable()
    holes.fill()
    gc.freeze()  # nothing of the image is ever looked at again, so its pages stay shared
    _say(control, {"ready": True})
    guard = Guard()
    _serve(control, room, guard)
    guard.end()


def _serve(control: socket.socket, room: image.Room, guard: Guard) -> None:
    while True:
        try:
            data, descriptors, _flags, _address = socket.recv_fds(control, LARGEST, MOST_FDS)
        except ConnectionResetError:
            continue  # said once, when the keeper went without reading all of ours: what it told us before is still to come
        except OSError:
            return
        if not data:
            return
        request = json.loads(data)
        if guard.heard(request):
            continue
        held = dict(zip(request["kinds"], descriptors, strict=True))
        try:
            _fork_twice(lambda: become_host(request, held, room), control)  # noqa: B023 - called within this turn
        except OSError as error:
            _say(control, {"launch": request["launch"], "error": error.strerror})
        for descriptor in descriptors:
            os.close(descriptor)


def _say(control: socket.socket, said: Mapping[str, object]) -> None:
    """A keeper that is gone hears nothing; what it told us before is to be read all the same, and says what ends with it."""
    with contextlib.suppress(OSError):
        control.send(json.dumps(said).encode())


def _fork_twice(host: Callable[[], object], control: socket.socket) -> None:
    """The host runs as an orphan, which makes it a child of the keeper. OSError when this machine cannot fork."""
    middle = os.fork()
    if middle == 0:
        status = 0
        try:
            if os.fork() == 0:
                control.close()
                _live(host)
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    _, ended = os.waitpid(middle, 0)
    if (number := os.waitstatus_to_exitcode(ended)) > 0:
        raise OSError(number, os.strerror(number))


def _live(host: Callable[[], object]) -> None:
    """Run the host to its end; nothing of it ever returns into the zygote."""
    status = 70
    try:
        host()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 70
    except BaseException:  # noqa: BLE001 - the last frame of this process: say it and end
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _point_stdin_nowhere() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.close(nowhere)


if __name__ == "__main__":
    main()
