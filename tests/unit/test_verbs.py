"""Goal: a verb's class and its face are all that clients and server need of it, and bad questions
end as errors. Method: a verb that only this file knows, in every way to call; hostile params."""

import asyncio
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hybridps as hps
from hybridps import verbs
from hybridps.config import load
from hybridps.rpc import schemas
from hybridps.security.rights import Right
from hybridps.server.guard import Guard
from hybridps.server.server import Server
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import TableFace, on_each
from hybridps.verbs.face import Run, Steps, attribute, verb, walk
from hybridps.verbs.kinds import Lane, Order


@dataclass(frozen=True, slots=True)
class Doubled(Cold[int]):
    """Twice the size of a table. It borrows a method of the schema, which is compiled in."""

    VERB = "size"
    ORDER = Order.READ
    LANE = Lane.LOOKS
    RIGHT = Right.READ

    table: int

    def run(self, site: Site) -> int:
        return 2 * site.store.size(self.table)

    @classmethod
    def answer(cls, results: Any, value: int) -> None:
        results.keys = value

    @classmethod
    def result(cls, results: Any) -> int:
        return int(results.keys)


class ToyOfTable(TableFace):
    @verb
    def doubled(self, plus: int = 0, *, timeout: float | None = None) -> Run[int]:
        """Twice the size, and `plus`."""
        return self._run(self._doubled(plus), timeout)

    @walk
    def countdown(self, *, timeout: float | None = None) -> Iterator[Run[int | None]]:
        """Once with what was asked, once with nothing, once more."""
        for plus in (3, None, 1):
            yield self._run(self._doubled(plus), timeout)

    @attribute
    def double(self) -> Run[int]:
        """As `doubled()`."""
        return self._run(self._doubled(0), None)

    def _doubled(self, plus: int | None) -> Steps[Any]:
        counts = yield from on_each(self._catalog, self._handle, Doubled)
        return None if plus is None else sum(counts) + plus


class Table(hps.Table, ToyOfTable):
    pass


class AioTable(hps.aio.Table, ToyOfTable):
    pass


SPEC = hps.TableSpec("item", 2, hps.SGD(0.1))


def blocking(url: str, **settings: Any) -> None:
    with hps.connect(url, **settings) as ps:
        made = ps.create_table(SPEC)
        made.lookup_or_insert([1, 2, 3])
        toy = Table(ps._driver, made._handle)
        assert (toy.doubled(), toy.doubled(1), toy.doubled(plus=2, timeout=5.0)) == (6, 7, 8)
        assert (list(toy.countdown()), toy.double, toy.size()) == ([9, 7], 6, 6)
        with pytest.raises(TypeError, match="plsu"):
            toy.doubled(plsu=1)  # type: ignore[call-arg]
        with pytest.raises(hps.HybridPSError, match="timeout"):
            toy.doubled(timeout=-1)


async def awaited(url: str, **settings: Any) -> None:
    async with hps.aio.connect(url, **settings) as ps:
        made = await ps.create_table(SPEC)
        await made.lookup_or_insert([1, 2, 3])
        toy = AioTable(ps._driver, made._handle)
        assert (await toy.doubled(), await toy.doubled(1, timeout=5.0)) == (6, 7)
        assert ([n async for n in toy.countdown()], await toy.double) == ([9, 7], 6)


async def test_a_verb_of_a_class_and_a_face_is_called_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server finds verbs in the table, and is told nothing else of this one.
    monkeypatch.setitem(verbs.VERBS, "size", Doubled)  # type: ignore[misc, arg-type]
    flags = ["--data", str(tmp_path / "d"), "--dram", "64MiB", "--nvme", "64MiB"]
    flags += ["--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0"]
    config = load(flags, {})
    server = Server(config, Guard(config), "asyncio")
    try:
        await server.start()
        await awaited(server.url)
        await asyncio.to_thread(blocking, server.url)
    finally:
        await server.stop()


def test_it_needs_no_server(tmp_path: Path) -> None:
    with hps.connect(f"local:{tmp_path}/a", dram="64MiB", nvme="64MiB") as ps:
        table = ps.create_table(SPEC)
        table.lookup_or_insert([1, 2, 3])
        toy = Table(ps._driver, table._handle)
        assert (toy.doubled(1), list(toy.countdown()), toy.double) == (7, [9, 7], 6)


async def test_nor_do_awaited_ones(tmp_path: Path) -> None:
    await awaited(f"local:{tmp_path}/a", dram="64MiB", nvme="64MiB")


def test_faces_show_what_was_written() -> None:
    assert str(inspect.signature(Table.doubled)).endswith(
        "(self, plus: int = 0, *, timeout: float | None = None) -> int"
    )
    assert inspect.signature(AioTable.doubled) == inspect.signature(Table.doubled)
    assert "AsyncIterator[int]" in str(inspect.signature(AioTable.countdown))
    assert Table.doubled.__doc__ == AioTable.doubled.__doc__ == "Twice the size, and `plus`."
    assert Table.doubled.__qualname__ == "Table.doubled"
    assert inspect.getdoc(Table.double) == "As `doubled()`."
    assert inspect.iscoroutinefunction(AioTable.doubled)
    assert inspect.isasyncgenfunction(AioTable.countdown)


def test_an_override_stays() -> None:
    class Own(Table):
        def doubled(self, *_args: Any, **_settings: Any) -> int:
            return -1

    class Below(Own):
        pass

    for kind in (Own, Below):
        assert kind.doubled(None) == -1  # type: ignore[arg-type]


async def test_warnings_name_the_line_of_the_caller(tmp_path: Path) -> None:
    other = hps.TableSpec("item", 2, hps.SGD(0.2))
    lines = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with hps.connect(f"local:{tmp_path}/a", dram="64MiB", nvme="64MiB") as ps:
            ps.create_table(SPEC)
            lines.append(line() + 1)
            ps.create_table(other)
        async with hps.aio.connect(f"local:{tmp_path}/a", dram="64MiB", nvme="64MiB") as both:
            lines.append(line() + 1)
            await both.create_table(other)
    assert [(w.filename, w.lineno) for w in told] == [(__file__, n) for n in lines]


def line() -> int:
    """The line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


@pytest.mark.parametrize("name", sorted(verbs.VERBS))
def test_empty_params_are_a_question_or_an_error_of_ours(name: str) -> None:
    kind = verbs.VERBS[name]
    if not issubclass(kind, Cold):
        return
    with schemas.read_params(name, schemas.new_params(name).to_bytes()) as params:
        try:
            assert isinstance(kind.read(params), kind)
        except hps.BadInputError:
            assert name == "hello", "every other default is a question, if of nothing"
