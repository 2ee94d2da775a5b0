"""Calls to and from the wire: hot verbs by the compiled connection, all others by pycapnp.

Pure: no socket, no clock. What a server answers is checked before anyone relies on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from hybridps import _core
from hybridps.client import calls
from hybridps.client.calls import Call, Found, Keys, Opened, Rows
from hybridps.errors import BadInputError, ConfigError, HybridPSError, from_reason
from hybridps.rpc import schemas
from hybridps.types import TableSpec, initializer_from, optimizer_from

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

# Bytes of a call beside its arrays; generous, the server's limit is a round number.
_HEADER_BYTES: Final = 1024
_TABLE_BYTES: Final = 64


class LostError(Exception):
    """The connection ended before the answer came; never leaves the client."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself in hello."""

    version: str
    shard: int
    shards: int
    frame_limit: int
    keys_limit: int


def read_hello(answer: _core.Answer) -> ServerInfo:
    """The server behind a fresh connection; raises what it refused with."""
    _raise_exception(answer)
    with schemas.read_results("hello", answer.results) as results:
        server = results.server
        return ServerInfo(
            server.version, server.shard, server.shards, server.frameLimit, server.keysLimit
        )


def check_server(info: ServerInfo, where: str, shard: int, shards: int) -> None:
    """Refuses a server whose shard does not match its place in the URL."""
    if (info.shard, info.shards) != (shard, shards):
        raise ConfigError(
            f"server {where} is shard {info.shard}/{info.shards}, the URL names it as"
            f" {shard}/{shards}; list all {info.shards} servers, in the order of their shards"
        )


def parts_of(info: ServerInfo, call: Call, where: str) -> list[Call]:
    """The call as the server takes it. Refuses what it would not, before a byte of it is sent."""
    check_limits(info, call, where)
    return [call]


def check_limits(info: ServerInfo, call: Call, where: str) -> None:
    """Refuses a call that the server would not read, before a byte of it is sent."""
    tables: Sequence[tuple[Any, ...]] = getattr(call, "tables", ())
    if isinstance(call, calls.Assign):
        tables = [(call.table, call.keys, call.rows)]
    elif isinstance(call, calls.Remove):
        tables = [(call.table, call.keys)]
    keys = sum(len(table[1]) for table in tables)
    arrays = (array for table in tables for array in table[1:] if array is not None)
    size = _HEADER_BYTES + sum(_TABLE_BYTES + array.nbytes for array in arrays)
    for what, value, limit, setting in (
        ("keys", keys, info.keys_limit, "keys_limit"),
        ("bytes", size, info.frame_limit, "frame_limit"),
    ):
        if value > limit:
            raise BadInputError(
                f"{verb_of(call)} holds {value} {what} for server {where}, which takes {limit} in"
                f" one call; split the batch, or raise {setting} in the server's config"
            )


def views(buffers: Sequence[Buffer]) -> list[memoryview]:
    """The buffers as bytes, empty ones left out."""
    return [view.cast("B") for view in (memoryview(buffer) for buffer in buffers) if view.nbytes]


def verb_of(call: Call) -> str:
    """The verb of a call by its name in the Python API."""
    return _VERBS[type(call)][0]


def begin(wire: _core.ClientConnection, call: Call, number: int) -> tuple[int, Sequence[Buffer]]:
    """The question and the buffers to send. `number` is that of a push, else 0."""
    match call:
        case calls.Lookup(tables, want_found):
            return wire.lookup(tables, want_found)
        case calls.LookupOrInsert(inserts):
            return wire.lookup_or_insert(inserts)
        case calls.ApplyGradients(gradients, step):
            return wire.apply_gradients(number, step, gradients)
    _, verb, fill, _ = _VERBS[type(call)]
    params = schemas.new_params(verb)
    if isinstance(call, calls.Push):
        params.init("push").number = number
    fill(params, call)
    return wire.call(verb, params.to_bytes())


def finish(call: Call, answer: _core.Answer, *, is_first: bool) -> Any:
    """The reply of a call; raises the server's error, or LostError when it is going away.

    `is_first`: the call was sent once, so that a duplicate is no echo of ourselves.
    """
    _raise_exception(answer)
    match call:
        case calls.Lookup(tables, want_found):
            return _rows_of([keys for _, keys in tables], answer, want_found=want_found)
        case calls.LookupOrInsert(inserts):
            return [rows for rows, _ in _rows_of([keys for _, keys, _ in inserts], answer)]
        case calls.ApplyGradients():
            return answer.duplicate and is_first
    _, verb, _, read = _VERBS[type(call)]
    with schemas.read_results(verb, answer.results) as results:
        return read(results)


def _raise_exception(answer: _core.Answer) -> None:
    if answer.kind != "exception":
        return
    kind, name, text = answer.exception
    if kind == "disconnected":
        raise LostError(text)
    raise from_reason(f"{name}: {text}" if name else text)


def _rows_of(
    keys: Sequence[Keys], answer: _core.Answer, *, want_found: bool = False
) -> list[tuple[Rows, Found | None]]:
    if len(answer.rows) != len(keys):
        raise HybridPSError(f"the server answered {len(answer.rows)} tables of {len(keys)}")
    replies: list[tuple[Rows, Found | None]] = []
    for table_keys, (row_bytes, found_bytes) in zip(keys, answer.rows, strict=True):
        rows = np.frombuffer(cast("bytes", row_bytes), "<f4").astype(np.float32, copy=False)
        n = len(table_keys)
        if rows.size % max(n, 1) or (n == 0 and rows.size):
            raise HybridPSError(f"the server answered {rows.size} numbers for {n} keys")
        found = None
        if want_found:
            # Flags of no keys are an empty Data, which is the same as none.
            flags = b"" if found_bytes is None else cast("bytes", found_bytes)
            found = np.frombuffer(flags, np.uint8).view(np.bool_)
            if len(found) != n:
                raise HybridPSError(f"the server answered {len(found)} flags for {n} keys")
        replies.append((rows.reshape(n, rows.size // max(n, 1)), found))
    return replies


def _fill_spec(builder: Any, spec: TableSpec) -> None:
    for name in ("name", "dim", "seed", "dtype"):
        setattr(builder, name, getattr(spec, name))
    builder.dram, builder.nvme = spec.dram or 0, spec.nvme or 0
    optimizer = builder.init("optimizer")
    optimizer.learningRate = spec.optimizer.learning_rate
    _fill_union(optimizer, spec.optimizer.options())
    _fill_union(builder.init("initializer"), spec.initializer.options())


def _fill_union(builder: Any, options: dict[str, Any]) -> None:
    member = _camel_case(options.pop("kind"))
    if not options:
        setattr(builder, member, None)
    elif options.keys() == {"value"}:
        setattr(builder, member, options["value"])
    else:
        struct = builder.init(member)
        for name, value in options.items():
            setattr(struct, _camel_case(name), value)


def _read_union(reader: Any) -> dict[str, Any]:
    member = str(reader.which())
    value = getattr(reader, member)
    options: dict[str, Any] = {"kind": _snake_case(member)}
    if isinstance(value, float):
        options["value"] = value
    elif value is not None:
        options |= {_snake_case(name): getattr(value, name) for name in value.schema.fieldnames}
    return options


def _read_table(results: Any) -> Opened:
    table = results.table
    spec = table.spec
    return Opened(
        table.id,
        TableSpec(
            name=spec.name,
            dim=spec.dim,
            optimizer=optimizer_from(_read_union(spec.optimizer), spec.optimizer.learningRate),
            initializer=initializer_from(_read_union(spec.initializer)),
            seed=spec.seed,
            dtype=spec.dtype,
            dram=spec.dram or None,
            nvme=spec.nvme or None,
        ),
        list(table.warnings),
    )


def _camel_case(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


def _fill_prefetch(params: Any, call: calls.Prefetch) -> None:
    tables = params.init("tables", len(call.tables))
    for builder, (table, keys) in zip(tables, call.tables, strict=True):
        builder.table = table
        builder.keys = _bytes(keys)


def _fill_assign(params: Any, call: calls.Assign) -> None:
    params.table, params.keys, params.rows = call.table, _bytes(call.keys), _bytes(call.rows)


def _fill_remove(params: Any, call: calls.Remove) -> None:
    params.table, params.keys = call.table, _bytes(call.keys)


def _fill_create_table(params: Any, call: calls.CreateTable) -> None:
    _fill_spec(params.init("spec"), call.spec)


def _fill_name(params: Any, call: calls.OpenTable | calls.DropTable) -> None:
    params.name = call.name


def _fill_id(params: Any, call: calls.Size | calls.TableStats) -> None:
    params.table = call.table


def _fill_learning_rate(params: Any, call: calls.SetLearningRate) -> None:
    params.table, params.learningRate = call.table, call.learning_rate


def _fill_alter(params: Any, call: calls.Alter) -> None:
    params.table = call.table
    change = params.init("change")
    if "learning_rate" in call.change:
        change.learningRate.value = call.change["learning_rate"]
    for name in ("dram", "nvme"):
        if name in call.change:
            getattr(change, name).value = call.change[name] or 0


def _fill_keys(params: Any, call: calls.KeysOf) -> None:
    params.table, params.bucket = call.table, call.bucket


def _fill_nothing(params: Any, call: Call) -> None:
    pass


def _read_nothing(results: Any) -> None:
    pass


def _read_counters(results: Any) -> dict[str, int]:
    return {str(counter.name): counter.value for counter in results.counters}


def _read_keys(results: Any) -> tuple[Keys, int]:
    return np.frombuffer(results.keys, "<u8").astype(np.uint64, copy=False), results.next


def _bytes(array: Keys | Rows) -> bytes:
    # Data takes bytes or a view of bytes; an empty array has no view that could be cast.
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


# Verb in the Python API, method in the schema, how params are filled, how results are read.
_Verb = tuple[str, str, Callable[[Any, Any], None], Callable[[Any], Any]]
_VERBS: Final[Mapping[type[Call], _Verb]] = {
    calls.Lookup: ("lookup", "lookup", _fill_nothing, _read_nothing),
    calls.LookupOrInsert: ("lookup_or_insert", "lookupOrInsert", _fill_nothing, _read_nothing),
    calls.ApplyGradients: ("apply_gradients", "applyGradients", _fill_nothing, _read_nothing),
    calls.Prefetch: ("prefetch", "prefetch", _fill_prefetch, _read_nothing),
    calls.Assign: ("assign", "assign", _fill_assign, _read_nothing),
    calls.Remove: ("remove", "remove", _fill_remove, lambda results: results.removed),
    calls.CreateTable: ("create_table", "createTable", _fill_create_table, _read_table),
    calls.OpenTable: ("table", "table", _fill_name, _read_table),
    calls.ListTables: ("tables", "tables", _fill_nothing, lambda results: list(results.names)),
    calls.DropTable: ("drop_table", "dropTable", _fill_name, _read_nothing),
    calls.SetLearningRate: (
        "set_learning_rate",
        "setLearningRate",
        _fill_learning_rate,
        _read_nothing,
    ),
    calls.Alter: ("alter", "alter", _fill_alter, _read_nothing),
    calls.Size: ("size", "size", _fill_id, lambda results: results.keys),
    calls.KeysOf: ("keys", "keys", _fill_keys, _read_keys),
    calls.TableStats: ("stats", "tableStats", _fill_id, _read_counters),
    calls.Stats: ("stats", "stats", _fill_nothing, _read_counters),
    calls.Flush: ("flush", "flush", _fill_nothing, _read_nothing),
}
