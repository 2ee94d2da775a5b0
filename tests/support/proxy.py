"""A TCP proxy that loses connections where a test wants: before a call arrives, or before its
answer does."""

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Forwards to one server; a context manager."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._answers_to_lose = 0
        self._is_stalled = False
        self._silent: set[int] = set()
        self.connections = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(5)

    @property
    def url(self) -> str:
        """The proxy as a server."""
        return f"hps://127.0.0.1:{self._listener.getsockname()[1]}"

    def lose_answers(self, count: int) -> None:
        """The next `count` answers are lost together with their connections."""
        with self._lock:
            self._answers_to_lose = count

    def stall(self, *, on: bool) -> None:
        """While on, answers are swallowed and the connections stay."""
        with self._lock:
            self._is_stalled = on

    def silence(self) -> None:
        """The connections of now stay and carry nothing any more; new ones work."""
        with self._lock:
            self._silent |= {id(sock) for pair in self._pairs for sock in pair}

    def cut(self) -> None:
        """Ends all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append((client, server))
                self.connections += 1
            for source, sink, is_answer in ((client, server, False), (server, client, True)):
                args = (source, sink, is_answer)
                threading.Thread(target=self._forward, args=args, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        has_greeted = False
        with source, contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_answer and has_greeted and self._loses():
                    break
                if (is_answer and self._is_stalled) or id(source) in self._silent:
                    continue
                # What a server sends first answers the hello.
                has_greeted = True
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def _loses(self) -> bool:
        with self._lock:
            if self._answers_to_lose == 0:
                return False
            self._answers_to_lose -= 1
            return True
