"""Goal: nothing unsafe to load, nothing of one machine, no panic by habit. Method: read."""

import ast
import re
from collections.abc import Iterator

import house

TEXT = (".py", ".pyi", ".rs", ".capnp", ".md", ".toml", ".txt", ".lock", "")
# Spelt in pieces, so that this file passes its own test.
REGISTRIES = (
    "pypi." + "org",
    "files." + "pythonhosted",
    "crates." + "io/api",
    "static." + "crates",
)
MACHINE = re.compile(r"(?<![\w.])/(?:w[o]rk|r[o]ot|h[o]me|U[s]ers)/\w")
TOP = ("Makefile", "pyproject.toml", "Cargo.toml", "README.md", "ARCHITECTURE.md",
       "CONTRIBUTING.md", "CHANGELOG.md")  # fmt: skip


def texts() -> Iterator[tuple[str, str]]:
    paths = [*house.files(*TEXT), *(house.ROOT / top for top in TOP)]
    for path in paths:
        if path.is_file() and "golden" not in path.parts:
            yield house.name(path), path.read_text(encoding="utf-8")


def test_no_registry_is_named() -> None:
    named = [f"{name}: {host}" for name, text in texts() for host in REGISTRIES if host in text]
    assert not named, named


def test_no_path_of_one_machine_is_named() -> None:
    named = [f"{name}: {m.group()}" for name, text in texts() for m in MACHINE.finditer(text)]
    assert not named, named


def calls(path_endings: tuple[str, ...] = (".py",)) -> Iterator[tuple[str, ast.Call]]:
    for path in house.files(*path_endings):
        for node in ast.walk(house.parsed(path)):
            if isinstance(node, ast.Call):
                yield f"{house.name(path)}:{node.lineno}", node


def test_arrays_are_loaded_without_pickle() -> None:
    wrong = []
    for where, call in calls():
        if ast.unparse(call.func) in ("np.load", "numpy.load"):
            allowed = {k.arg: ast.unparse(k.value) for k in call.keywords}.get("allow_pickle")
            if allowed != "False":
                wrong.append(where)
    assert not wrong, f"np.load without allow_pickle=False: {wrong}"


def test_nothing_evaluates_data() -> None:
    unsafe = {"yaml.load", "eval", "exec", "os.system", "pd.read_pickle"}
    wrong = [
        f"{where} {name}" for where, call in calls() if (name := ast.unparse(call.func)) in unsafe
    ]
    assert not wrong, wrong


def test_torch_loads_weights_only() -> None:
    wrong = [
        where
        for where, call in calls()
        if ast.unparse(call.func) == "torch.load"
        and ("weights_only", "True") not in {(k.arg, ast.unparse(k.value)) for k in call.keywords}
    ]
    assert not wrong, f"torch.load without weights_only=True: {wrong}"


def test_rust_does_not_unwrap() -> None:
    wrong = []
    for path in house.files(".rs"):
        if house.is_rust_test(path):
            continue
        code = house.without_tests(house.rust_code(path.read_text(encoding="utf-8")))
        lines = [n for n, line in enumerate(code.split("\n"), 1) if ".unwrap()" in line]
        wrong += [f"{house.name(path)}:{n}" for n in lines]
    assert not wrong, f".unwrap() outside tests: {wrong}"


def test_code_is_ascii() -> None:
    wrong = [
        house.name(path)
        for path in house.files(".py", ".pyi", ".rs", ".capnp")
        if "tests" not in path.parts and not path.read_text(encoding="utf-8").isascii()
    ]
    assert not wrong, wrong


def test_every_file_says_what_it_holds() -> None:
    silent = [
        house.name(path)
        for path in house.files(".py")
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(house.parsed(path))
    ]
    silent += [
        house.name(path)
        for path in house.files(".rs")
        if "src" in path.parts
        and path.stem != "tests"
        and not path.read_text(encoding="utf-8").lstrip().startswith(("//!", "// "))
    ]
    assert not silent, f"no opening lines: {silent}"


def test_the_house_needs_only_the_standard_library() -> None:
    allowed = {"ast", "collections", "functools", "house", "importlib", "inspect", "pathlib", "re",
               "sys", "typing", "hybridps", "pytest"}  # fmt: skip
    wrong = [
        f"{house.name(path)} imports {module}"
        for path in house.files(".py", under=("tests/house",))
        for node in ast.walk(house.parsed(path))
        for module in _modules(node)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong, wrong


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
