"""What the tests of the house share; it needs nothing but the standard library."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "hybridps", "clients", "tests", "examples", "benchmarks", "rust", "schemas", "docs", ".ci"
)  # fmt: skip
BUILT = {"target", ".venv", "__pycache__", "build", "dist"}


def files(*endings: str, under: tuple[str, ...] = ROOMS) -> Iterator[Path]:
    """The project's files with one of these endings, in a fixed order; never built ones."""
    for room in under:
        for path in sorted((ROOT / room).rglob("*")):
            parts = path.relative_to(ROOT).parts
            built = BUILT.intersection(parts) or any(p.endswith(".egg-info") for p in parts)
            if path.is_file() and not built and (not endings or path.suffix in endings):
                yield path


def name(path: Path) -> str:
    """The path as the project's documents write it."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def schema_verbs() -> list[str]:
    """Verbs of the wire, in snake case."""
    schema = (ROOT / "schemas" / "hybridps.capnp").read_text(encoding="utf-8")
    text = re.sub(r"#[^\n]*", "", schema)
    session = text[text.index("interface Session") :]
    body = session[session.index("{") + 1 : session.index("\n}")]
    names = re.findall(r"^\s*(\w+) @\d+", body, re.MULTILINE)
    return [re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name in names]


# Comments, strings and character literals of Rust; what is left can be counted by braces.
_RUST_NOISE = re.compile(
    r"//[^\n]*"
    r"|/\*.*?\*/"
    r'|b?r(?P<hashes>#*)".*?"(?P=hashes)'
    r'|b?"(?:\\.|[^"\\])*"'
    r"|b?'(?:\\[^\n]{1,10}?|[^'\\\n])'",
    re.DOTALL,
)


def rust_code(text: str) -> str:
    """Rust text with comments and literals blanked, line by line as before."""
    return _RUST_NOISE.sub(lambda m: "".join("\n" if c == "\n" else " " for c in m.group()), text)


def rust_blocks(code: str, opening: str) -> Iterator[tuple[str, int, int]]:
    """(first group, first line, last line) of each block whose head matches `opening`."""
    # The semicolon of an array's length ends no declaration.
    ends = re.sub(r"\[[^\[\]]*\]", lambda m: m.group().replace(";", " "), code)
    for match in re.finditer(opening, code):
        start = code.find("{", match.end())
        semicolon = ends.find(";", match.end())
        if start < 0 or 0 <= semicolon < start:
            continue  # a declaration without a body
        depth, at = 0, start
        while at < len(code):
            depth += (code[at] == "{") - (code[at] == "}")
            at += 1
            if depth == 0:
                break
        yield match.group(1), code.count("\n", 0, match.start()) + 1, code.count("\n", 0, at) + 1


def without_tests(code: str) -> str:
    """Blanked Rust code without its inline test modules."""
    lines = code.split("\n")
    marked = (
        r"#\[cfg\((?:test|all\(test[^\]]*)\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub\S* )?(mod|fn|impl|use)\b"
    )
    for _, first, last in list(rust_blocks(code, marked)):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(lines)


def is_rust_test(path: Path) -> bool:
    """Whether the file is tests from its first line to its last."""
    parts = path.relative_to(ROOT).parts
    return (
        "tests" in parts or "benches" in parts or path.stem.endswith(("_tests", "_test", "tests"))
    )
