"""The engine and the connection, compiled from `rust/`. Typed face and long docs live here.

Arrays are NumPy, C-contiguous, one-dimensional keys; every call releases the interpreter lock.
Errors are raised as the classes of `hybridps.errors`. Keys are the 64-bit patterns; they may repeat
in every verb (repeats are merged here, before the engine sees them).
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
Rows: TypeAlias = NDArray[np.float32]

__version__: str
# The session of what workers push together; its push numbers are those of the rounds.
WORKERS_SESSION: int

def initial_rows(spec: str, keys: Keys) -> Rows:
    """float32[n, dim]: the rows these keys would start with."""

def check_spec(spec: str) -> int:
    """Numbers of a row, value and slots. Raises BadInputError for a spec that no table can have."""

def needs(spec: str, rows: int) -> list[tuple[str, int]]:
    """What so many rows of a table will take: the fields of `hybridps.Plan`, by name."""

def unique(ids: Keys, shards: int) -> tuple[Keys, list[int], NDArray[np.uint32]]:
    """Unique keys grouped by shard, the shards + 1 offsets, and the index of each id's key."""

def gather(rows: Rows, inverse: NDArray[np.uint32], out: Rows) -> None:
    """out[i] = rows[inverse[i]]."""

def sum_rows(rows: Rows, inverse: NDArray[np.uint32], unique: int) -> tuple[Rows, bool]:
    """float32[unique, dim]: rows summed per key in order of occurrence; and if all are finite."""

def sum_counts(
    counts: NDArray[np.uint32], inverse: NDArray[np.uint32], unique: int
) -> NDArray[np.uint32]:
    """uint32[unique], saturating."""

def is_finite(rows: Rows) -> bool:
    """True if every number is finite; one pass, no temporary."""

class Store:
    """A store opened in this process. `spec` strings are the JSON of `TableSpec.to_json`."""

    def __init__(
        self,
        path: str,
        *,
        dram: int,
        nvme: int,
        durability: str,
        threads: int,
        shard: int = 0,
        shards: int = 1,
        scrub_rate: int = 0,
        cold: tuple[str, int] | None = None,
    ) -> None: ...
    @staticmethod
    def exists(path: str) -> bool:
        """Whether the directory holds a store, open or not. Changes nothing."""

    def attach(self, session: int, client_id: str) -> int: ...
    def create_table(self, spec: str) -> tuple[int, str, list[str]]:
        """(id, stored spec, live settings that differ)."""
    def table(self, name: str) -> tuple[int, str]: ...
    def io_description(self) -> str:
        """How rows are read from NVMe; a warning where the best way was refused."""

    def health(self) -> tuple[str, str]:
        """("ok", ""), or what is not served and why.

        "degraded": calls that need room are refused with StoreFullError for want of it; the others
        go on, and these will once there is room. "failed": nothing that changes anything is served
        until the store is opened again; reads are, unless the reason is a panic. Never waits for a
        device.
        """

    def tables(self) -> list[str]: ...
    def drop_table(self, name: str) -> None: ...
    def spec(self, table: int) -> str: ...
    def alter(self, table: int, change: str) -> None:
        """JSON object with any of learning_rate, dram, nvme; null lifts a cap."""
    def lookup(
        self, batches: Sequence[tuple[int, Keys]], want_found: bool
    ) -> list[tuple[Rows, NDArray[np.bool_] | None]]: ...
    def lookup_or_insert(
        self, batches: Sequence[tuple[int, Keys, NDArray[np.uint32] | None]]
    ) -> list[Rows]: ...
    def lookup_pooled(
        self,
        batches: Sequence[tuple[int, Keys, NDArray[np.uint32], NDArray[np.float32] | None]],
    ) -> list[Rows]:
        """One row a bag: keys of all bags, the size of each bag, a weight for each key or None."""
    def apply_gradients(
        self,
        session: int,
        number: int,
        step: int | None,
        batches: Sequence[tuple[int, Keys, Rows]],
    ) -> bool:
        """True if the push had been applied before."""
    def assign(self, session: int, number: int, batches: Sequence[tuple[int, Keys, Rows]]) -> None:
        """Of one table, as are `remove` and `inspect`."""
    def scatter(
        self,
        session: int,
        number: int,
        operation: int,
        batches: Sequence[tuple[int, Keys, Rows]],
    ) -> None:
        """`operation` by its number in the schema."""
    def import_rows(
        self, session: int, number: int, batches: Sequence[tuple[int, Keys, Rows]]
    ) -> None:
        """Whole rows: value, slots or none, then counts and last use as the bits of two uint32."""
    def remove(self, session: int, number: int, batches: Sequence[tuple[int, Keys]]) -> int: ...
    def prefetch(self, batches: Sequence[tuple[int, Keys]]) -> None: ...
    def size(self, table: int) -> int: ...
    def keys(self, table: int, bucket: int) -> tuple[Keys, int]: ...
    def export_rows(
        self, table: int, cells: tuple[int, int], with_slots: bool, most_bytes: int
    ) -> tuple[Keys, NDArray[np.float32], int]:
        """Keys and whole rows of some cells, and where to go on."""
    def expire(self, table: int, bucket: int, now: int | None) -> tuple[int, int]:
        """Rows that went, and the bucket where the next step begins; 4096 ends the walk."""

    def cursor(self) -> tuple[str, int, list[tuple[str, int, int]]]:
        """Which store, up to where all changes are made, and name, id and dim of its tables."""

    def changes(
        self, table: int, cells: tuple[int, int], since: int | None, most_bytes: int
    ) -> tuple[Keys, Keys, NDArray[np.float32], int]:
        """A page: keys removed, keys of rows, their values one after the other, and where to go on.

        Raises CursorError when changes since then cannot be told any more.
        """

    def table_stats(self, table: int) -> dict[str, int]: ...
    def stats(self) -> dict[str, int]: ...
    def snapshot(self) -> tuple[dict[str, int], list[str], list[tuple[str, list[int]]]]:
        """The store's counters, the names of a table's, and each table with their values."""
    def inspect(
        self, batches: Sequence[tuple[int, Keys]]
    ) -> list[tuple[str | None, int | None, bool, int, int, int, float, str | None]]:
        """Of each key: tier, place, is dirty, sequence, frequency, last seen, norm, error."""
    def statistics(
        self, batches: Sequence[tuple[int, Keys]]
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32], bytes]:
        """Training reads, Unix seconds of the last, and tier: 0 none, 1 dram, 2 nvme, 3 cold."""
    def scrub(
        self, start: int, step_bytes: int
    ) -> tuple[int | None, int, int, int, list[tuple[tuple[str, int] | None, int, str]]]:
        """One step: where to go on, records, bytes, bytes of a pass, and what is damaged.

        Of each damaged part: table and key, byte offset, fate.
        """
    def take_damaged(self) -> tuple[list[tuple[tuple[str, int] | None, int, str]], int]:
        """What was found damaged since the last time, and how many findings were left out."""
    def job(self, name: str, request: str) -> str:
        """Asks after a job, and begins it if there is none of that name: JSON both ways."""
    def flush(self) -> None: ...
    def close(self) -> None: ...

# ---------------------------------------------------------------------------------------------
# Wire: rpc.capnp, two-party, without I/O. Neither class touches a socket: the owner of the socket
# reads into get_buffer(), says received(n), and writes what it is given, in the order it is given.
# Not thread-safe: one thread (or one lock) per connection. Only HotCall.run may leave that thread.
#
# `Buffer` below is any object with the buffer protocol (a compiled class): hand it to
# socket.sendmsg, transport.write, memoryview(), np.frombuffer, or pycapnp.

Verb = str  # a method of Session in the schema, camelCase: "lookup", "createTable", ...

def checkpoints(path: str) -> tuple[str, list[str]]:
    """JSON list of the manifests in a directory, and what is wrong with others."""

def verify_checkpoint(path: str, id: str | None) -> str:  # noqa: A002 - as in Python
    """Reads a checkpoint, or all; JSON of its manifest."""

def prune_checkpoints(path: str, keep: int, every_s: float | None) -> list[str]:
    """Ids of those that were deleted."""

def schema() -> str:
    """Text of schemas/hybridps.capnp, as this module was compiled with it."""

def tune_allocator() -> None:
    """Keeps blocks of some MiB inside malloc (glibc; else nothing). Once, when a server starts."""

class Buffer:
    """Bytes owned by the compiled side, exported without a copy; alive while any view of it is."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Login:
    """Gate.login; nothing more is decoded until accept() or reject() has answered it."""

    question: int
    token: str

class HotCall:
    """A call that carries arrays: lookup, lookupOrInsert, lookupPooled, applyGradients, prefetch,
    assign, scatter or remove. Decoded and answered without Python objects.
    """

    question: int
    verb: Verb
    frame_bytes: int
    reply_bytes: int  # of the reply to come and what makes it, 0 when the call will fail
    announced_bytes: int  # of a push in parts, of which this call only tells; else 0
    code: str  # once run: "ok", or the class name of the error
    cost: int  # bytes that must move: frame + reply; below ~64 KiB a hop to a thread costs more

    tables: list[int]  # ids of those that it names; before it is run
    keys: list[tuple[int, Keys]]  # of a read, by table; before it is run
    is_streamed: bool  # a large reply: `send` it, or `run` it where nothing can be sent past you
    unsent_bytes: int  # of a streamed reply; 0 once nothing is left to send

    number: int  # of a push, or its round; else 0
    step: int | None  # of a push

    def run(self) -> Buffer:
        """The Return frame: results, or an exception for anything that is wrong. Never raises for
        what a peer sent. Once; any thread; releases the interpreter lock.
        """
    def hold(self) -> Buffer | None:
        """Takes a push in that is applied with those of others: `apply_together`. Not None: the
        Return frame of a part of a push, or of one that something is wrong with. Instead of `run`.
        """
    def acknowledge(self) -> Buffer:
        """The Return frame of a held push that was applied before."""
    def try_run(self) -> Buffer | None:
        """As `run`, if the engine need not wait for a device or for other calls; else None, and the
        call is still to be run. Always None for a verb that changes rows.
        """
    def send(self, outlet: Outlet, /) -> bool:
        """Sends the next few MiB of a streamed Return while it gathers them; two threads at a time
        are enough, and hold four pieces of 512 KiB at most. True: the socket takes no more now.

        Nothing else may write to the socket until `unsent_bytes` is 0. Never raises for what a peer
        sent: a failure is the whole reply, or its end. Raises OSError if the socket fails. Releases
        the interpreter lock.
        """

def apply_together(calls: Sequence[HotCall], number: int) -> list[Buffer]:
    """Sums the gradients of the held pushes of round `number`, in the order given, and applies them
    once; their Return frames. A failure is that of all, and has changed nothing.
    """

class Outlet:
    """A socket for `HotCall.send`: a descriptor of its own, which an event loop cannot close."""

    def __init__(self, descriptor: int, /) -> None:
        """A duplicate of a non-blocking, connected socket. Raises OSError."""
    def fileno(self) -> int: ...
    def shutdown(self) -> None:
        """Ends both directions: a send that waits fails."""

class ColdCall:
    """Any other verb of Session; decoded by pycapnp."""

    question: int
    verb: Verb
    frame_bytes: int
    params: Buffer  # a complete message whose root is the verb's params struct

class Connection:
    """Server side of one connection."""

    session: int  # set by whoever answers hello; names the pushes of this connection. 0: none yet
    closing: str | None  # why the connection must be closed once outgoing() is written
    is_inside_frame: bool  # the peer owes the rest of a frame
    is_collecting: bool  # a push waits for further parts
    frame_wanted: int  # bytes of a frame that is on its way and too large for the common buffer

    def __init__(self, store: Store, *, frame_limit: int, keys_limit: int) -> None: ...
    def get_buffer(self, hint: int) -> Buffer: ...
    def received(self, count: int, at_once: int = 0) -> list[Login | HotCall | ColdCall]:
        """What `count` more bytes in the buffer completed. Never raises for what a peer sent.

        Lookups that cost at most `at_once` and need not wait for anything, up to the first call
        that is none, are answered here: their replies are in outgoing(), what to count in noted().
        """
    def noted(self) -> list[tuple[Verb, str, float]]:
        """(verb, code, seconds) of calls that received() answered since this was last asked."""
    def accept(self, question: int) -> list[Login | HotCall | ColdCall]:
        """Answers a Login with the Session; returns what had been waiting behind it."""
    def reject(self, question: int, reason: str) -> list[Login | HotCall | ColdCall]: ...
    def answer(self, question: int) -> Buffer | None:
        """Books the reply of a HotCall; returns what to send instead if the peer has given up."""
    def returns(self, question: int, results: bytes) -> Buffer:
        """Return frame around `results`, the to_bytes() of a message whose root is the results."""
    def fails(self, question: int, kind: str, reason: str) -> Buffer:
        """Return frame of an exception; kind: failed, overloaded, disconnected, unimplemented."""
    def forget_parts(self) -> None:
        """Drops what came of a push in parts."""
    def cancelled(self, question: int) -> bool:
        """The peer no longer wants the answer. It still has to be given."""
    def outgoing(self) -> Buffer:
        """Frames to write now: of the connection itself (bootstrap, unimplemented, abort), and
        answers that received() gave. Empty if there are none.
        """
    def abort(self, reason: str) -> None:
        """Puts an Abort into outgoing() and sets closing."""

class Answer:
    question: int
    kind: str  # "rows", "duplicate" (applyGradients), "removed" (remove), "results", "exception"
    rows: list[tuple[Buffer, Buffer | None]]
    """Per table, in the order asked: rows (float32) and found (uint8, None unless asked for),
    writable, views of the received frame: `np.frombuffer(rows, np.float32)` owns it, no copy.
    Lengths are the peer's: check them against keys * dim."""
    duplicate: bool
    removed: int
    results: Buffer
    """A complete message whose root is the verb's results struct, for pycapnp."""
    exception: tuple[str, str, str]
    """(type, class name, text): type as in Connection.fails; class name is the part of the reason
    before ": " when it is an identifier that ends in Error, else ""."""

class ClientConnection:
    """Client side of one connection. Send every buffer of a call, in order, before the next."""

    closed: str | None  # the peer's Abort, or what it sent wrong; every later call would fail
    in_flight: int  # calls without an answer

    def __init__(self, *, frame_limit: int = ..., dtype: str = "float32") -> None:
        """frame_limit: the largest reply that is accepted, bytes. dtype: how rows and gradients
        travel: "float32", "bfloat16" or "float16"; here they are float32 always.
        """
    def start(
        self,
        session: int,
        client_id: str,
        token: str = "",
        worker: tuple[int, int] | None = None,
    ) -> tuple[int, bytes]:
        """Bootstrap + login + hello in one flight: hello's question, the bytes. Its Answer holds
        the results of hello; a refused login fails it. Calls may be sent behind it at once.
        """
    def lookup(
        self, batches: Sequence[tuple[int, Keys]], want_found: bool
    ) -> tuple[int, list[Buffer]]:
        """(question, buffers to send). The arrays themselves are among the buffers: C-contiguous,
        not changed until sent. BadInputError when a call does not fit one frame.
        """
    def lookup_or_insert(
        self, batches: Sequence[tuple[int, Keys, NDArray[np.uint32] | None]]
    ) -> tuple[int, list[Buffer]]: ...
    def lookup_pooled(
        self,
        batches: Sequence[
            tuple[int, NDArray[np.unsignedinteger], NDArray[np.uint32], NDArray[np.float32] | None]
        ],
        key_bytes: int,
    ) -> tuple[int, list[Buffer]]:
        """As `Store.lookup_pooled`; keys are uint64, or uint32 where `key_bytes` is 4."""
    def apply_gradients(
        self,
        number: int,
        step: int | None,
        batches: Sequence[tuple[int, Keys, Rows]],
        total: int = 0,
    ) -> tuple[int, list[Buffer]]:
        """`total`, here and below: bytes of all parts, of a push that comes in parts."""
    def prefetch(self, batches: Sequence[tuple[int, Keys]]) -> tuple[int, list[Buffer]]: ...
    def assign(
        self, number: int, batches: Sequence[tuple[int, Keys, Rows]], total: int = 0
    ) -> tuple[int, list[Buffer]]: ...
    def scatter(
        self,
        number: int,
        operation: int,
        batches: Sequence[tuple[int, Keys, Rows]],
        total: int = 0,
    ) -> tuple[int, list[Buffer]]: ...
    def import_rows(
        self, number: int, batches: Sequence[tuple[int, Keys, Rows]], total: int = 0
    ) -> tuple[int, list[Buffer]]: ...
    def remove(
        self, number: int, batches: Sequence[tuple[int, Keys]], total: int = 0
    ) -> tuple[int, list[Buffer]]: ...
    def call(self, verb: Verb, params: bytes) -> tuple[int, list[Buffer]]:
        """Any verb; `params` is the to_bytes() of a message whose root is its params struct."""
    def get_buffer(self, hint: int) -> Buffer: ...
    def received(self, count: int) -> list[Answer]:
        """Answers that `count` more bytes completed. What a peer sent wrong is told by `closed`."""
    def forget(self, question: int) -> None:
        """The caller gave up (deadline): its answer, when it comes, is dropped."""
    def probe(self) -> bytes:
        """Asks for a sign of life, which a server gives at once; the bytes to send. Its answer is
        no Answer: only that bytes come tells.
        """
    def pending_bytes(self) -> bytes:
        """Small frames (Finish ...) that go with the next write, or at once if none comes soon;
        call() and the verbs put them in front of their own buffers by themselves.
        """

class Role:
    """What one thread at a time does. An exception out of a signal never leaves it taken."""

    is_taken: bool

    def __init__(self) -> None: ...
    def claim(self) -> Claim:
        """`with role.claim() as is_mine:` tries once, and does not wait."""

class Claim:
    def __enter__(self) -> bool: ...
    def __exit__(self, kind: object, error: object, traceback: object) -> None: ...
