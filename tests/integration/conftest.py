"""Clients over every transport, and the servers behind them; both kinds of event loop."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.clients import LOCAL, Servers, connect, fresh_name, kinds

import hybridps as hps


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that all tests share."""
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture(params=kinds())
def kind(request: pytest.FixtureRequest) -> str:
    """A transport."""
    return str(request.param)


@pytest.fixture
def ps(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A client over the transport."""
    if kind in LOCAL:
        client = connect(kind, f"local:{tmp_path / 'store'}", dram="16MiB", nvme="64MiB")
    else:
        client = connect(kind, request.getfixturevalue("servers").url(kind))
    with client:
        yield client


@pytest.fixture
def spec() -> hps.TableSpec:
    """A table that no other test has."""
    return hps.TableSpec(fresh_name(), 4, hps.SGD(0.5), hps.Normal(std=0.1), seed=3)


@pytest.fixture
def table(ps: Any, spec: hps.TableSpec) -> Any:
    """An empty table of dim 4 with plain gradient descent at rate 0.5."""
    return ps.create_table(spec)


@pytest.fixture(
    params=[asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Runs a coroutine on one kind of loop."""

    def runner(main: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as loop:
            loop.run(main)

    return runner
