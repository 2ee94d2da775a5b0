"""Goal: files and functions stay small enough to be read. Method: count lines."""

import ast
from collections.abc import Iterator

import house

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
# The border to Python unpacks, calls and maps errors: what grows belongs into a crate below it.
BORDER_LINES_MAX = 1000


def test_no_file_is_too_long() -> None:
    long = {
        house.name(path): lines
        for path in house.files(".py", ".pyi", ".rs", ".capnp")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > FILE_LINES_MAX
    }
    assert not long, f"over {FILE_LINES_MAX} lines: {long}"


def test_the_border_crate_stays_thin() -> None:
    files = house.files(".rs", under=("rust/python",))
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in files)
    assert lines < BORDER_LINES_MAX, f"rust/python has {lines} lines"


def test_no_function_is_too_long() -> None:
    long = [
        f"{where} has {lines} lines"
        for where, lines in [*python_functions(), *rust_functions()]
        if lines > FUNCTION_LINES_MAX
    ]
    assert not long, f"over {FUNCTION_LINES_MAX} lines: {long}"


def test_no_line_is_too_wide() -> None:
    wide = [
        f"{house.name(path)}:{number}"
        for path in house.files(".py", ".pyi", ".rs", ".capnp")
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert not wide, f"over {COLUMNS_MAX} columns: {wide}"


def python_functions() -> Iterator[tuple[str, int]]:
    for path in house.files(".py"):
        for node in ast.walk(house.parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                last = node.end_lineno or node.lineno
                yield f"{house.name(path)}:{node.lineno} {node.name}", last - node.lineno + 1


def rust_functions() -> Iterator[tuple[str, int]]:
    for path in house.files(".rs"):
        code = house.rust_code(path.read_text(encoding="utf-8"))
        for function, first, last in house.rust_blocks(code, r"\bfn (\w+)"):
            yield f"{house.name(path)}:{first} {function}", last - first + 1


def test_the_counters_count() -> None:
    rust = 'fn short() { let brace = "}"; }\nfn long(a: [u8; 3]) -> u8 {\n  // }\n  a[0]\n}\n'
    found = list(house.rust_blocks(house.rust_code(rust), r"\bfn (\w+)"))
    assert found == [("short", 1, 1), ("long", 2, 5)]
    assert len(list(python_functions())) > 100
    assert len(list(rust_functions())) > 100
