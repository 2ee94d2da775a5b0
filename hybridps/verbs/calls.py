"""The base of every verb: what one server, or the store in this process, is asked.

A verb is a class. Its fields are the question; the class says how the question and its answer are
written and read, what they may overlap with, and what the store is to do. A call names tables by
that server's id and carries unique keys. Who executes calls (`client`, `server`) asks the class.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridps import _core
from hybridps.security.rights import Right
from hybridps.verbs.kinds import Cut, Lane, Order
from hybridps.verbs.names import camel_case

T = TypeVar("T")

Keys = NDArray[np.uint64]
Rows = NDArray[np.float32]
Counts = NDArray[np.uint32]
Found = NDArray[np.bool_]
# A table's id, its keys, and what else it has a row of for each key (None: not in this call).
Arrays = tuple[Any, ...]
# The question of a call that was begun, and the buffers to send.
Begun = tuple[int, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself in hello."""

    version: str
    shard: int
    shards: int
    # Bytes of the largest message, and keys of the largest call, that it reads.
    frame_limit: int
    keys_limit: int
    # The highest push number of the session that was applied; 0: none.
    last_push: int = 0
    # The last round that workers pushed together; 0: none.
    last_round: int = 0
    # Verbs that it knows, and fields that older servers do not, by name.
    features: frozenset[str] = frozenset()


# Of a replica that never had all rows of the one that it follows.
NEVER_MS: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Standing:
    """What a server is to others: told with its counters."""

    # 0: a primary. 1: a replica.
    role: int = 0
    # How far it is behind the one that it follows.
    staleness_ms: int = 0
    # Rows that it took over since it was started, removals counted.
    followed_rows: int = 0


PRIMARY: Final = Standing()


@dataclass(frozen=True, slots=True)
class Site:
    """Where a call is run, and as which push of whose session (0: it is none)."""

    store: _core.Store
    info: ServerInfo
    session: int = 0
    number: int = 0
    standing: Callable[[], Standing] = lambda: PRIMARY


@dataclass(frozen=True, slots=True)
class Call(abc.ABC, Generic[T]):
    """Base of all calls; T is what they give. Safe to send again when no answer came."""

    # The verb in snake case; the schema has it in camel case.
    VERB: ClassVar[str]
    ORDER: ClassVar[Order]
    LANE: ClassVar[Lane]
    RIGHT: ClassVar[Right]
    # Of a reply that may be large: bytes that a server sets aside before the call is run.
    REPLY_MAX_BYTES: ClassVar[int] = 0
    # What workers of sync mode do in rounds, all of them as one.
    IS_TOGETHER: ClassVar[bool] = False

    def touches(self) -> Sequence[int | str]:
        """The tables that it is about, by id or by name; a token may be for some only."""
        table: int | str | None = getattr(self, "table", getattr(self, "name", None))
        return () if table is None else (table,)

    @property
    def may_be_replay(self) -> bool:
        """Whether its caller may have made it before this session: it is a step of a trainer."""
        return False

    @classmethod
    def spoken(cls) -> str:
        """The verb by its name in the Python API, for errors."""
        return cls.VERB

    @classmethod
    def method(cls) -> str:
        """The verb by its name in the schema."""
        return camel_case(cls.VERB)

    def needs(self) -> tuple[str, ...]:
        """What a server's features have to hold, lest it pass over part of the question in silence:
        the verb, and names of fields that servers of that verb did not always have.
        """
        return (self.VERB,)

    @abc.abstractmethod
    def run(self, site: Site, /) -> T:
        """Asks the engine. Off the event loop: it may wait for whatever the lane says."""


@dataclass(frozen=True, slots=True)
class Cold(Call[T]):
    """A call whose messages pycapnp writes and reads: all but those with large arrays.

    Unless a verb says otherwise its fields are the params of the schema by name, and its results
    are empty.
    """

    def fill(self, params: Any) -> None:
        """Client: writes the question into the params."""
        for field in fields(self):
            setattr(params, camel_case(field.name), getattr(self, field.name))

    @classmethod
    def read(cls, params: Any) -> Self:
        """Server: the question from params that a peer sent. Keeps nothing of `params` itself.

        Raises: BadInputError for what no client of ours would ask.
        """
        return cls(**{f.name: getattr(params, camel_case(f.name)) for f in fields(cls)})

    @classmethod
    def answer(cls, results: Any, value: T) -> None:
        """Server: writes what `run` gave into the results."""

    @classmethod
    def result(cls, results: Any) -> T:
        """Client: what `run` gave on the server. Keeps nothing of `results` itself."""
        return None  # type: ignore[return-value]  # what a verb without results gives


@dataclass(frozen=True, slots=True)
class Hot(Call[T]):
    """A call with large arrays: the compiled side writes and reads its messages around them."""

    CUT: ClassVar[Cut] = Cut.NEVER
    # True for one that never waits: a server answers it where it is decoded.
    IS_INSTANT: ClassVar[bool] = False

    tables: Sequence[Arrays]

    def of(self, tables: Sequence[Arrays]) -> Self:
        """The call, of these tables instead of its own."""
        return replace(self, tables=tables)

    @abc.abstractmethod
    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Client: writes the question. `number` is that of a push, else 0; `total` the bytes of all
        its parts, if the call is one of several.
        """

    @abc.abstractmethod
    def finish(self, answer: _core.Answer, *, is_first: bool) -> T:
        """Client: what an answer without an exception holds, checked.

        `is_first`: the call was sent once, so that a duplicate is no echo of ourselves.
        """


@dataclass(frozen=True, slots=True)
class Push(Hot[T]):
    """A call that changes rows: numbered, and applied once however often it is sent."""

    ORDER = Order.PUSH
    LANE = Lane.PUSHES
    RIGHT = Right.TRAIN
    CUT = Cut.PARTS
