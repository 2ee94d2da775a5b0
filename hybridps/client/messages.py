"""Calls to and from the wire: hot verbs by the compiled connection, all others by pycapnp.

Pure: no socket, no clock. What a server answers is checked before anyone relies on it.
"""

from typing import Any, TypeVar

from hybridps import _core
from hybridps.errors import ConfigError, HybridPSError, from_reason
from hybridps.rpc import schemas
from hybridps.verbs.calls import Begun, Call, Cold, Hot, ServerInfo
from hybridps.verbs.hello import SYNC_WORKERS, WIRE_DTYPE, Hello

T = TypeVar("T")


class LostError(Exception):
    """The connection ended before the answer came; never leaves the client."""


def read_hello(answer: _core.Answer) -> ServerInfo:
    """The server behind a fresh connection; raises what it refused with."""
    _raise_exception(answer)
    return _result(Hello, answer)


def check_server(info: ServerInfo, where: str, shard: int, shards: int) -> None:
    """Refuses a server whose shard does not match its place in the URL."""
    if (info.shard, info.shards) != (shard, shards):
        raise ConfigError(
            f"server {where} is shard {info.shard}/{info.shards}, the URL names it as"
            f" {shard}/{shards}; list all {info.shards} servers, in the order of their shards"
        )


def check_known(info: ServerInfo, call: Call[Any], where: str) -> None:
    """Refuses a call of which the server would not understand all."""
    missing = [name for name in call.needs() if name not in info.features]
    if missing:
        names = ", ".join(map(repr, missing))
        raise ConfigError(
            f"server {where} is hybridps {info.version or 'of no version'} and does not know"
            f" {names}, which this client, hybridps {_core.__version__}, asks for; use a newer"
            " server"
        )


def check_dtype(info: ServerInfo, wire_dtype: str, where: str) -> None:
    """Refuses a server that would not see how rows and gradients travel."""
    if wire_dtype != "float32" and WIRE_DTYPE not in info.features:
        raise ConfigError(
            f"server {where} is hybridps {info.version or 'of no version'}, which takes rows and"
            f" gradients as float32 alone; connect without wire_dtype={wire_dtype!r}, or use a"
            " newer server"
        )


def check_workers(info: ServerInfo, where: str) -> None:
    """Refuses a server that would apply what every worker pushes by itself."""
    if SYNC_WORKERS not in info.features:
        raise ConfigError(
            f"server {where} is hybridps {info.version or 'of no version'}, which knows no workers"
            ' that push together; connect without mode="sync", or use a newer server'
        )


def begin(wire: _core.ClientConnection, call: Call[Any], number: int, total: int = 0) -> Begun:
    """The question and the buffers to send. `number` is that of a push, else 0; `total` the bytes
    of all its parts, if the call is one of several.
    """
    if isinstance(call, Hot):
        return call.begin(wire, number, total)
    if isinstance(call, Cold):
        params = schemas.new_params(call.method())
        call.fill(params)
        return wire.call(call.method(), params.to_bytes())
    raise HybridPSError(f"{call.spoken()} is neither hot nor cold")


def finish(call: Call[T], answer: _core.Answer, *, is_first: bool) -> T:
    """The reply of a call; raises the server's error, or LostError when it is going away.

    `is_first`: the call was sent once, so that a duplicate is no echo of ourselves.
    """
    _raise_exception(answer)
    reply: T
    if isinstance(call, Hot):
        reply = call.finish(answer, is_first=is_first)
        return reply
    if isinstance(call, Cold):
        reply = _result(type(call), answer)
        return reply
    raise HybridPSError(f"{call.spoken()} is neither hot nor cold")


def _result(kind: type[Cold[T]], answer: _core.Answer) -> T:
    with schemas.read_results(kind.method(), answer.results) as results:
        return kind.result(results)


def _raise_exception(answer: _core.Answer) -> None:
    if answer.kind != "exception":
        return
    kind, name, text = answer.exception
    if kind == "disconnected":
        raise LostError(text)
    raise from_reason(f"{name}: {text}" if name else text)
