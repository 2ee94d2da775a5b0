"""A client that holds the socket itself: it can stop reading, cut off, or send half a call."""

import socket
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from hybridps import _core

REPLY_S = 30.0


class RawClient:
    """One blocking connection; what is sent and what is read is up to the test."""

    def __init__(self, address: tuple[str, int] | str, session: int, receive_bytes: int = 0):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_bytes:
            # Set before connect, so that the window is never offered larger.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(REPLY_S)
        self.socket.connect(address)
        self.connection = _core.ClientConnection(frame_limit=1 << 30)
        hello, opening = self.connection.start(session, "")
        self.socket.sendall(opening)
        self.answer(hello)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, call: tuple[int, list[Any]]) -> int:
        """Sends a call made by `connection`; its question."""
        question, buffers = call
        for buffer in buffers:
            self.socket.sendall(buffer)
        return question

    def answer(self, question: int) -> Any:
        """Reads on until that question is answered; others in between are dropped."""
        while True:
            buffer = memoryview(self.connection.get_buffer(1 << 16))
            received = self.socket.recv_into(buffer)
            if received == 0:
                raise ConnectionError("the server closed the connection")
            del buffer
            for answer in self.connection.received(received):
                if answer.question == question:
                    return answer
            if self.connection.closed is not None:
                raise ConnectionError(self.connection.closed)

    def lookup(self, table: int, keys: Sequence[int]) -> int:
        """Asks for rows; the question."""
        return self.send(self.connection.lookup([(table, np.array(keys, np.uint64))], False))
