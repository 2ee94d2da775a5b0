"""Goal: a verb stands in one place. Method: the table of verbs beside schema, documents and source:
nothing is missing, nothing is told twice."""

import inspect
import re
from pathlib import Path

import house
import pytest

hps = pytest.importorskip("hybridps")
verbs = pytest.importorskip("hybridps.verbs")
calls = pytest.importorskip("hybridps.verbs.calls")
kinds = pytest.importorskip("hybridps.verbs.kinds")
rights = pytest.importorskip("hybridps.security.rights")

PROTOCOL = house.ROOT / "docs" / "protocol.md"
PACKAGE = list(house.files(".py", under=("hybridps",)))
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \|", re.MULTILINE)


def test_the_table_of_verbs_is_the_schema() -> None:
    assert {verb.VERB for verb in verbs.VERBS.values()} == set(house.schema_verbs())
    assert all(verb.method() == name for name, verb in verbs.VERBS.items())


def test_every_verb_says_how_it_is_run() -> None:
    for verb in verbs.VERBS.values():
        assert isinstance(verb.ORDER, kinds.Order), verb
        assert isinstance(verb.LANE, kinds.Lane), verb
        assert isinstance(verb.RIGHT, rights.Right), verb
        assert verb.LANE is not kinds.Lane.SAMPLES, verb
        assert not inspect.isabstract(verb), verb
        assert inspect.getdoc(verb), verb
        assert issubclass(verb, calls.Hot | calls.Cold), verb
        is_push = issubclass(verb, calls.Push)
        assert not is_push or verb.CUT is kinds.Cut.PARTS, "a push is applied as one"


def test_no_call_is_left_out_of_the_table() -> None:
    def concrete(kind: type) -> set[type]:
        here = set() if inspect.isabstract(kind) or "VERB" not in vars(kind) else {kind}
        return here.union(*(concrete(below) for below in kind.__subclasses__()))

    # A dataclass with slots is made twice; the first is nobody's.
    found = {(kind.__module__, kind.__qualname__) for kind in concrete(calls.Call)}
    told = {(kind.__module__, kind.__qualname__) for kind in verbs.VERBS.values()}
    assert {kind for kind in found if kind[0].startswith("hybridps.")} == told


def test_the_protocol_lists_every_verb_with_its_order_lane_and_right() -> None:
    told = {row[0]: row[1:] for row in ROW.findall(PROTOCOL.read_text(encoding="utf-8"))}
    real = {n: (v.ORDER.name.lower(), v.LANE.value, v.RIGHT.word) for n, v in verbs.VERBS.items()}
    assert told == real


def words(path: Path) -> set[str]:
    """What a file has in quotes or as a name."""
    return set(re.findall(r"\b[A-Za-z_]\w*\b", path.read_text(encoding="utf-8")))


def test_no_other_module_spells_a_verb_as_the_schema_does() -> None:
    # Of one word the spelling is the same everywhere, and tells nothing.
    spelled = {name for name in verbs.VERBS if name != verbs.VERBS[name].VERB}
    assert {"lookupOrInsert", "createTable"} <= spelled
    wrong = [
        f"{house.name(path)} names {word}" for path in PACKAGE for word in words(path) & spelled
    ]
    assert not wrong, wrong


def test_client_and_server_know_no_verb_but_by_the_table() -> None:
    """Of calls they name hello alone, which makes a connection, and no verb's function."""
    names = {verb.__name__ for verb in verbs.VERBS.values()} - {"Hello"}
    others = [p for p in PACKAGE if p.parts[-2] in ("client", "rpc", "server")]
    assert len(others) > 20
    wrong = [f"{house.name(p)} names {word}" for p in others for word in words(p) & names]
    assert not wrong, wrong


def public(face: type) -> dict[str, object]:
    return {name: vars(face)[name] for name in vars(face) if not name.startswith("_")}


def plain(member: object) -> object:
    return member.fget if isinstance(member, property) else member


@pytest.mark.parametrize("kind", ["Table", "ParameterServer"])
def test_both_clients_have_the_same_verbs_with_the_same_words(kind: str) -> None:
    blocking, awaited = public(getattr(hps, kind)), public(getattr(hps.aio, kind))
    assert set(blocking) == set(awaited)
    for name in set(blocking) - {"table", "close", "name"}:  # Each client's own.
        ours, theirs = plain(blocking[name]), plain(awaited[name])
        assert ours.__module__.startswith("hybridps.verbs."), name
        assert inspect.getdoc(ours) == inspect.getdoc(theirs), name
        mine, other = inspect.signature(ours), inspect.signature(theirs)
        assert mine.parameters == other.parameters, name
        assert "Run" not in f"{mine}{other}", f"{name} shows what users never see"
        is_walk = inspect.isasyncgenfunction(theirs)
        assert is_walk or inspect.iscoroutinefunction(theirs), name
        assert not inspect.iscoroutinefunction(ours), name
        if kind == "ParameterServer" and name == "create_table":
            assert mine.return_annotation is hps.Table
            assert other.return_annotation is hps.aio.Table
        elif not is_walk:
            assert mine.return_annotation == other.return_annotation, name


def test_every_verb_takes_a_timeout() -> None:
    for face in (hps.Table, hps.ParameterServer, hps.aio.Table, hps.aio.ParameterServer):
        for name, member in public(face).items():
            if inspect.isfunction(member) and member.__module__.startswith("hybridps.verbs."):
                timeout = inspect.signature(member).parameters["timeout"]
                assert timeout.kind is inspect.Parameter.KEYWORD_ONLY, name
                assert timeout.default is None, name
