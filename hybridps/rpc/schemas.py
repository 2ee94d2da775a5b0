"""The schema as pycapnp sees it, and the params and results of each verb of `Session`.

The text comes from the compiled module, so the two codecs of one process cannot disagree.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from tempfile import NamedTemporaryFile
from typing import Any

import capnp
from capnp.lib.capnp import _StructModule

from hybridps import _core

# A message from a peer holds at most a frame; this only bounds how often pointers may overlap.
_TRAVERSAL_LIMIT_WORDS = 1 << 27


def _load() -> tuple[Any, Any]:
    # Its own parser: a program may load the same file from elsewhere, and one parser refuses two
    # files of one id.
    parser = capnp.SchemaParser()
    with _schema_file() as path:
        file = parser._parse_disk_file("hybridps.capnp", path, [])  # noqa: SLF001 - as `load` does
        return parser, file.get_nested("Session").as_interface()


@contextmanager
def _schema_file() -> Iterator[str]:
    """The text as a file, which is all that pycapnp reads: in memory where the system has such
    files, since a container may have no place to write to.
    """
    text = _core.schema().encode()
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("hybridps.capnp"), "wb", buffering=0) as file:
            file.write(text)
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with NamedTemporaryFile(prefix="hybridps-", suffix=".capnp") as file:
        file.write(text)
        file.flush()
        yield file.name


# `capnp` looks for schemas among all later imports of the program unless told not to.
capnp.remove_import_hook()
_PARSER, SESSION = _load()
VERBS = frozenset(SESSION.method_names)


@cache
def _structs(verb: str) -> tuple[Any, Any]:
    method = SESSION.methods[verb]
    return (
        _StructModule(method.param_type, f"{verb}Params"),
        _StructModule(method.result_type, f"{verb}Results"),
    )


def new_params(verb: str) -> Any:
    """A builder for the params of the verb (its name in the schema)."""
    return _structs(verb)[0].new_message()


def new_results(verb: str) -> Any:
    """A builder for the results of the verb."""
    return _structs(verb)[1].new_message()


def read_params(verb: str, message: Any) -> AbstractContextManager[Any]:
    """The params in `message`, a buffer that must stay as it is inside the context."""
    return _read(_structs(verb)[0], message)


def read_results(verb: str, message: Any) -> AbstractContextManager[Any]:
    """The results in `message`, a buffer that must stay as it is inside the context."""
    return _read(_structs(verb)[1], message)


def _read(struct: Any, message: Any) -> AbstractContextManager[Any]:
    reader: AbstractContextManager[Any] = struct.from_bytes(
        message, traversal_limit_in_words=_TRAVERSAL_LIMIT_WORDS
    )
    return reader
