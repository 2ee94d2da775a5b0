"""Goal: a file knows the step below and never the one above. Method: walk every import."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import house

LEAVES = {
    "errors",
    "types",
    "optimizers",
    "config",
    "placement",
    "keys",
    "sizes",
    "budgets",
    "unbuilt",
}

# Room -> what its files must not import, by prefix. A room is the first part below `hybridps`.
FORBIDDEN = {
    "leaf": ("hybridps.client", "hybridps.server", "hybridps.rpc", "hybridps.demo", "hybridps.aio",
             "hybridps.layers", "asyncio", "socket", "torch", "tensorflow", "keras", "capnp"),
    "verbs": ("hybridps.client", "hybridps.server", "hybridps.rpc", "hybridps.demo",
              "hybridps.aio", "hybridps.layers", "asyncio", "socket", "torch", "tensorflow",
              "keras", "capnp"),
    "export": ("hybridps.client", "hybridps.server", "hybridps.rpc", "hybridps.verbs",
               "hybridps._core", "hybridps.demo", "hybridps.aio", "hybridps.layers", "asyncio",
               "socket", "torch", "tensorflow", "keras", "capnp"),
    "rpc": ("hybridps.client", "hybridps.server", "hybridps.demo", "hybridps.aio",
            "hybridps.layers", "torch", "tensorflow", "keras"),
    "server": ("hybridps.client", "hybridps.demo", "hybridps.aio", "hybridps.layers", "torch",
               "tensorflow", "keras"),
    "replica": ("hybridps.server", "hybridps.demo", "hybridps.layers", "torch", "tensorflow",
                "keras", "socket"),
    "client": ("hybridps.server", "hybridps.demo", "hybridps.layers", "torch", "tensorflow",
               "keras"),
    "layers": ("hybridps._core", "hybridps.server", "hybridps.rpc", "hybridps.demo", "hybridps.aio",
               "torch", "tensorflow", "keras", "socket", "asyncio"),
    "demo": ("hybridps._core", "hybridps.client", "hybridps.layers", "hybridps.server",
             "hybridps.rpc"),
    "clients": ("hybridps._core", "hybridps.client", "hybridps.server", "hybridps.rpc",
                "hybridps.demo", "socket", "asyncio"),
    "clients/torch": ("tensorflow", "keras"),
    "clients/tensorflow": ("torch",),
    "examples": ("hybridps._core", "hybridps.client", "hybridps.layers", "hybridps.server",
                 "hybridps.rpc", "hybridps.demo"),
    "benchmarks": ("hybridps._core", "hybridps.client.", "hybridps.server.", "hybridps.rpc"),
}  # fmt: skip
# `pickle` and its users run whatever a file says; the others leave the rules above.
NEVER = ("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "imp")


def test_rooms_import_downwards_only() -> None:
    wrong = [
        f"{house.name(path)}:{line} imports {module}"
        for path in house.files(".py")
        for line, module in imports(path)
        for name in rooms(path)
        for prefix in FORBIDDEN.get(name, ())
        if module == prefix.rstrip(".") or module.startswith(prefix.rstrip(".") + ".")
    ]
    assert not wrong, wrong


def test_nothing_unpickles() -> None:
    wrong = [
        f"{house.name(path)}:{line} imports {module}"
        for path in house.files(".py")
        for line, module in imports(path)
        if module.split(".")[0] in NEVER and "tests" not in path.parts
    ]
    assert not wrong, wrong


def rooms(path: Path) -> tuple[str, ...]:
    """The rooms whose rules hold for a file: its own and the one around it."""
    parts = path.relative_to(house.ROOT).parts
    if parts[0] != "hybridps":
        return () if "tests" in parts else (parts[0], "/".join(parts[:2]))
    return ("leaf" if path.stem in LEAVES and len(parts) == 2 else parts[1],)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import, those inside functions included."""
    package = path.relative_to(house.ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(house.parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


# Rust: room below `rust/core/src` -> rooms it must not name.
DOORS = ("store", "table")
ENGINE_FORBIDDEN = {
    "types": ("*",),
    "error": (*DOORS, "log", "journal", "cache", "index", "device", "optimizer"),
    "optimizer": (*DOORS, "log", "journal", "cache", "index", "device"),
    "init": (*DOORS, "log", "journal", "cache", "index", "device"),
    "spec": (*DOORS, "log", "journal", "cache", "index", "device"),
    "batch": (*DOORS, "log", "journal", "cache", "device"),
    "index": (*DOORS, "log", "journal", "cache", "device", "optimizer"),
    "device": (*DOORS, "log", "journal", "cache", "index", "optimizer"),
    "journal": (*DOORS, "log", "cache", "index", "optimizer"),
    "log": (*DOORS, "journal", "cache", "optimizer"),
    "table": ("store",),
}
CRATE_FORBIDDEN = {
    "core": (r"\bpyo3\b", r"\btokio\b", r"\bstd::net\b", r"\bhybridps_wire\b"),
    "wire": (r"\bpyo3\b", r"\btokio\b", r"\bstd::(net|fs|thread|time)\b", r"\bhybridps_core\b"),
    # Of a socket, the ways to send and to end it (outlet.rs), none to make one.
    "serve": (r"\bpyo3\b", r"\bstd::net::(?!Shutdown\b)", r"\bstd::fs\b", r"\btokio\b"),
    "python": (r"\bstd::(net|fs|thread|time)\b", r"\btokio\b"),
}


def rust_sources(crate: str) -> Iterator[tuple[Path, str]]:
    for path in house.files(".rs", under=(f"rust/{crate}/src",)):
        if not house.is_rust_test(path):
            yield path, house.without_tests(house.rust_code(path.read_text(encoding="utf-8")))


def test_engine_rooms_look_downwards_only() -> None:
    wrong = []
    for path, code in rust_sources("core"):
        own = path.relative_to(house.ROOT / "rust/core/src").parts[0].removesuffix(".rs")
        for used in set(re.findall(r"\bcrate::(\w+)", code)):
            banned = ENGINE_FORBIDDEN.get(own, ())
            if used != own and (used in banned or "*" in banned):
                wrong.append(f"{house.name(path)} uses crate::{used}")
    assert not wrong, wrong


def test_crates_keep_to_their_world() -> None:
    wrong = [
        f"{house.name(path)} names {pattern}"
        for crate, patterns in CRATE_FORBIDDEN.items()
        for path, code in rust_sources(crate)
        for pattern in patterns
        if re.search(pattern, code)
    ]
    assert not wrong, wrong


# What changes files, and the door itself.
CHANGES_FILES = re.compile(
    r"\bfs::(?:write|rename|remove_file|remove_dir|copy|hard_link)\b|\.create(?:_new)?\(true\)"
    r"|\.(?:set_len|sync_data|sync_all|write_all_at|write_vectored)\("
)
DOOR = {"vfs/mod.rs", "vfs/trace.rs"}


def test_the_engine_changes_files_by_one_door() -> None:
    wrong = []
    for path, code in rust_sources("core"):
        name = path.relative_to(house.ROOT / "rust/core/src").as_posix()
        # A lock file holds nothing to lose.
        looked_at = code[: code.index("fn take_lock")] if name == "directory.rs" else code
        lines = [n for n, line in enumerate(looked_at.split("\n"), 1) if CHANGES_FILES.search(line)]
        wrong += [f"{house.name(path)}:{n}" for n in lines if name not in DOOR]
    assert not wrong, f"changes a file past `vfs`, where no power cut is tried: {wrong}"
