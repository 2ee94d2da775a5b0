"""The schema as pycapnp sees it, and the params and results of each verb of `Session`.

The text comes from the compiled module, so the two codecs of one process cannot disagree.
"""

from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import capnp
from capnp.lib.capnp import _StructModule

from hybridps import _core

# A message from a peer holds at most a frame; this only bounds how often pointers may overlap.
_TRAVERSAL_LIMIT_WORDS = 1 << 27


def _load() -> tuple[Any, Any]:
    # Its own parser: a program may load the same file from elsewhere, and one parser refuses two
    # files of one id. pycapnp reads schemas from files only.
    parser = capnp.SchemaParser()
    with TemporaryDirectory(prefix="hybridps-") as folder:
        path = Path(folder) / "hybridps.capnp"
        path.write_text(_core.schema(), encoding="utf-8")
        return parser, parser.load(str(path))


# `capnp` looks for schemas among all later imports of the program unless told not to.
capnp.remove_import_hook()
_PARSER, SCHEMA = _load()


@cache
def _structs(verb: str) -> tuple[Any, Any]:
    method = SCHEMA.Session.schema.methods[verb]
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
