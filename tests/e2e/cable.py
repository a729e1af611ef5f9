"""A cable between a program and a server that can be cut: nothing is refused then, nothing arrives, and nobody is told."""

from __future__ import annotations

import selectors
import socket
import threading

CHUNK = 1 << 16


class Cable:
    """Forwards TCP from a port of its own. While cut, connections stay as they are and no byte passes."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._held: list[socket.socket] = []  # accepted while cut
        self._wake, self._woken = socket.socketpair()
        self._cut = self._closed = False
        self._watched = True  # whether connections are looked at
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="cable", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        self._turn(True)

    def join(self) -> None:
        """Bytes pass again; what was connected during the cut is dropped, as nobody was there."""
        self._turn(False)

    def close(self) -> None:
        self._closed = True
        self._wake.send(b"x")
        self._thread.join(10)

    def _turn(self, cut: bool) -> None:
        self._cut = cut
        self._wake.send(b"x")

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(1.0):
                found = key.fileobj
                assert isinstance(found, socket.socket)
                if found is self._woken:
                    self._woken.recv(CHUNK)
                    self._apply()
                elif found is self._listener:
                    self._accept()
                elif found in self._pairs and self._watched:
                    self._forward(found)
        for each in (*self._pairs, *self._held, self._listener, self._wake, self._woken):
            each.close()
        self._selector.close()

    def _apply(self) -> None:
        if self._cut == (not self._watched):
            return
        self._watched = not self._cut
        if self._cut:
            for each in self._pairs:
                self._selector.unregister(each)
        else:
            for each in self._held:
                each.close()
            self._held.clear()
            for each in self._pairs:
                self._selector.register(each, selectors.EVENT_READ)

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        if not self._watched:
            self._held.append(accepted)
            return
        try:
            other = socket.create_connection(self._to, timeout=5)
        except OSError:
            accepted.close()
            return
        self._pairs |= {accepted: other, other: accepted}
        for each in (accepted, other):
            each.setblocking(True)
            self._selector.register(each, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(CHUNK)
            if data:
                self._pairs[source].sendall(data)
                return
        except OSError:
            data = b""
        other = self._pairs.pop(source)
        self._pairs.pop(other)
        for each in (source, other):
            self._selector.unregister(each)
            each.close()
