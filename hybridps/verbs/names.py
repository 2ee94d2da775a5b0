"""One name, two spellings: snake_case here and in the engine, camelCase in the schema."""

import re
from functools import cache


@cache
def snake_case(name: str) -> str:
    """`rowWiseAdagrad` -> `row_wise_adagrad`."""
    return re.sub(r"[A-Z]", lambda upper: "_" + upper[0].lower(), name)


@cache
def camel_case(name: str) -> str:
    """`row_wise_adagrad` -> `rowWiseAdagrad`."""
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)
