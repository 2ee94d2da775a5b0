"""A client that holds the socket itself: it can stop reading, cut off, or send half a call."""

import socket
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from hybridps import _core
from hybridps.rpc import schemas

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
        self.connection = _core.ClientConnection(frame_limit=1 << 30)
        try:
            self.socket.connect(address)
            hello, opening = self.connection.start(session, "")
            self.socket.sendall(opening)
            self.answer(hello)
        except BaseException:
            self.socket.close()
            raise

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

    def call(self, verb: str, **params: Any) -> Any:
        """Any verb, answered: the reader of its results lives as long as the answer."""
        message = schemas.new_params(verb)
        for name, value in params.items():
            setattr(message, name, value)
        answer = self.answer(self.send(self.connection.call(verb, message.to_bytes())))
        if answer.kind == "exception":
            raise AssertionError(answer.exception)
        with schemas.read_results(verb, answer.results) as results:
            return results.to_dict()

    def create_table(self, name: str, dim: int) -> int:
        """The id of a table of SGD with a learning rate of 1, from zero."""
        optimizer = {"learningRate": 1.0, "sgd": None}
        spec = {"name": name, "dim": dim, "optimizer": optimizer, "initializer": {"zeros": None}}
        table: int = self.call("createTable", spec=spec)["table"]["id"]
        return table

    def lookup(self, table: int, keys: Sequence[int]) -> int:
        """Asks for rows; the question."""
        return self.send(self.connection.lookup([(table, np.array(keys, np.uint64))], False))
