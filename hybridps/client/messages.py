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
from hybridps.errors import ConfigError, HybridPSError, from_reason
from hybridps.optimizers import Optimizer, optimizer_from
from hybridps.rpc import schemas
from hybridps.types import TableSpec, initializer_from

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


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


def verb_of(call: Call) -> str:
    """The verb of a call by its name in the Python API."""
    return _VERBS[type(call)][0]


def begin(
    wire: _core.ClientConnection, call: Call, number: int, total: int = 0
) -> tuple[int, Sequence[Buffer]]:
    """The question and the buffers to send. `number` is that of a push, else 0; `total` the bytes
    of all its parts, if the call is one of several.
    """
    match call:
        case calls.Lookup(tables, want_found):
            return wire.lookup(tables, want_found)
        case calls.LookupOrInsert(inserts):
            return wire.lookup_or_insert(inserts)
        case calls.Prefetch(tables):
            return wire.prefetch(tables)
        case calls.Push():
            return _begin_push(wire, call, number, total)
    _, verb, fill, _ = _VERBS[type(call)]
    params = schemas.new_params(verb)
    fill(params, call)
    return wire.call(verb, params.to_bytes())


def _begin_push(
    wire: _core.ClientConnection, call: calls.Push, number: int, total: int
) -> tuple[int, Sequence[Buffer]]:
    match call:
        case calls.ApplyGradients(gradients, step):
            return wire.apply_gradients(number, step, gradients, total)
        case calls.Assign(table, keys, rows):
            return wire.assign(number, table, keys, rows, total)
        case calls.Remove(table, keys):
            return wire.remove(number, table, keys, total)
    raise HybridPSError(f"no push is called {type(call).__name__}")


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
        case calls.Remove():
            return answer.removed
        case calls.Prefetch() | calls.Assign():
            return None
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
    for name, value in spec.optimizer.gradient_options().items():
        setattr(optimizer, _camel_case(name), value)
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


def _read_optimizer(reader: Any) -> Optimizer:
    names = ("weight_decay", "clip_value", "clip_norm")
    gradients = {name: getattr(reader, _camel_case(name)) for name in names}
    return optimizer_from(_read_union(reader), reader.learningRate, gradients)


def _read_table(results: Any) -> Opened:
    table = results.table
    spec = table.spec
    return Opened(
        table.id,
        TableSpec(
            name=spec.name,
            dim=spec.dim,
            optimizer=_read_optimizer(spec.optimizer),
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


# Verb in the Python API, method in the schema, how params are filled, how results are read.
_Verb = tuple[str, str, Callable[[Any, Any], None], Callable[[Any], Any]]
_VERBS: Final[Mapping[type[Call], _Verb]] = {
    calls.Lookup: ("lookup", "lookup", _fill_nothing, _read_nothing),
    calls.LookupOrInsert: ("lookup_or_insert", "lookupOrInsert", _fill_nothing, _read_nothing),
    calls.ApplyGradients: ("apply_gradients", "applyGradients", _fill_nothing, _read_nothing),
    calls.Prefetch: ("prefetch", "prefetch", _fill_nothing, _read_nothing),
    calls.Assign: ("assign", "assign", _fill_nothing, _read_nothing),
    calls.Remove: ("remove", "remove", _fill_nothing, _read_nothing),
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
