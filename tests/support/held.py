"""A server on loopback, in a thread of this process, that answers when a test lets it."""

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any, Self

from hybridps import _core
from support.lined import Far, Store
from support.wired import feed


class HeldServer:
    """Answers `hello` at once, and calls when `hold` of them have come: the last one first."""

    def __init__(self, folder: Path, hold: int = 1) -> None:
        self.store = Store(folder)
        self.hold = hold
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._socks: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        self.store.engine.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._listener.getsockname()
        return host, port

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._socks.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        far, held = Far(self.store), list[Any]()
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(1 << 16):
                events = feed(far.wire, data)
                while events:
                    event = events.pop(0)
                    if isinstance(event, _core.Login):
                        events = far.wire.accept(event.question)
                    elif isinstance(event, _core.HotCall):
                        held.append(event)
                    else:
                        sock.sendall(bytes(far.wire.outgoing()) + bytes(far.answer(event)))
                sock.sendall(bytes(far.wire.outgoing()))
                if len(held) >= self.hold:
                    while held:
                        sock.sendall(bytes(far.answer(held.pop())))
