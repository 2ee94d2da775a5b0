"""Goal: one verb, one name, from schema to engine; the stub tells the truth about the module.

Method: compare the interface of the schema, the clients, the stub, the compiled module and the
engine by name.
"""

import ast
import re

import house
import pytest

VERBS = house.schema_verbs()
STUB = house.ROOT / "hybridps" / "_core.pyi"
STORE = house.ROOT / "rust" / "core" / "src" / "store"

# What a verb of the wire is called where its own name cannot be used.
ELSEWHERE = {
    "hello": {"engine": "attach", "stub": "attach", "client": None},
    "set_learning_rate": {"engine": "alter", "stub": "alter"},
    "table_stats": {"client": None},  # Table.stats
    "lookup_pooled": {"client": None},  # Table.lookup(pool=)
    "scatter": {"client": None},  # Table.scatter_add and its family
    "staleness": {"engine": None, "stub": None},  # a server's own; the engine follows nobody
    "export_rows": {"client": None},  # Table.export_to
    "import_rows": {"client": None},  # Table.import_from
    "checkpoint": {"engine": "save", "stub": "job"},  # a server's part of it
    "restore": {"engine": "stage_restore", "stub": "job"},
    "size": {"engine": "len"},  # Rust and Python both say len; a client cannot await it
}
OF_A_TABLE = {"lookup", "lookup_or_insert", "apply_gradients", "assign", "remove", "keys", "alter",
              "set_learning_rate", "size", "stats", "inspect",
              "statistics", "expire"}  # fmt: skip


def stub_classes() -> dict[str, set[str]]:
    classes = {}
    for node in house.parsed(STUB).body:
        if isinstance(node, ast.ClassDef):
            members = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AnnAssign)]
            classes[node.name] = {
                m.name if isinstance(m, ast.FunctionDef) else ast.unparse(m.target) for m in members
            }
    return classes


def engine_methods() -> set[str]:
    paths = [STORE.with_suffix(".rs"), *STORE.glob("*.rs")]
    text = "".join(p.read_text(encoding="utf-8") for p in paths if p.is_file())
    return set(re.findall(r"pub fn (\w+)", house.rust_code(text)))


def expected(verb: str, place: str) -> str | None:
    return ELSEWHERE.get(verb, {}).get(place, verb)


def test_the_schema_has_verbs() -> None:
    assert {"lookup", "lookup_or_insert", "apply_gradients", "create_table"} <= set(VERBS)


def test_every_verb_of_the_wire_is_in_the_engine_by_that_name() -> None:
    methods = engine_methods()
    missing = [v for v in VERBS if (name := expected(v, "engine")) and name not in methods]
    assert not missing, f"not `pub fn` of Store: {missing}"


def test_every_verb_of_the_wire_is_in_the_module_by_that_name() -> None:
    methods = stub_classes()["Store"]
    missing = [v for v in VERBS if (name := expected(v, "stub")) and name not in methods]
    assert not missing, f"not in _core.Store: {missing}"


def test_every_verb_of_the_wire_is_a_method_of_the_clients() -> None:
    hps = pytest.importorskip("hybridps")
    both = ((hps.ParameterServer, hps.Table), (hps.aio.ParameterServer, hps.aio.Table))
    for client, table in both:
        for verb in VERBS:
            name = expected(verb, "client")
            if name is None:
                continue
            owner = table if name in OF_A_TABLE and not hasattr(client, name) else client
            assert callable(getattr(owner, name, None)), f"{owner.__name__} lacks {name}"


def test_stub_and_module_have_the_same_names() -> None:
    core = pytest.importorskip("hybridps._core")
    tree = house.parsed(STUB).body
    told = {n.name for n in tree if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    values = [n for n in tree if isinstance(n, ast.AnnAssign) and n.value is None]
    told |= {ast.unparse(n.target) for n in values if not ast.unparse(n.target).startswith("_")}
    is_public = {n for n in vars(core) if not n.startswith("_")}
    assert told == is_public, f"only in the stub or only in the module: {told ^ is_public}"


def test_stub_and_module_have_the_same_members() -> None:
    core = pytest.importorskip("hybridps._core")
    for name, told in stub_classes().items():
        told_public = {m for m in told if not m.startswith("_")}
        real = {m for m in vars(getattr(core, name)) if not m.startswith("_")}
        assert told_public == real, f"{name}: {told_public ^ real}"
