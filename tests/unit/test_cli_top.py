"""Goal: `hybridps top` tells what a server did between two looks, and says so when it cannot.
Method: texts of /metrics beside numbers by hand; ports without a server, or of another kind."""

import json
import socket
import threading
from dataclasses import asdict
from typing import Any

import pytest

from hybridps import cli, cli_top
from hybridps.server.metrics import Metrics


def metrics(within: dict[float, int], **store: int) -> str:
    """Text of /metrics, with other lines between."""
    lines = [f"hybridps_store_{name} {value}" for name, value in store.items()]
    total = 0
    for bound, count in within.items():
        total += count
        label = f'le="{bound}",method="lookup"'
        lines.append(f"hybridps_request_seconds_bucket{{{label}}} {float(total)}")
    lines += [
        f'hybridps_request_seconds_bucket{{le="+Inf",method="lookup"}} {float(total)}',
        'hybridps_request_seconds_bucket{le="0.001",method="flush"} 1000.0',
        'hybridps_keys{table="hybridps_store_keys 5"} 7',
        "hybridps_connections 3.0",
    ]
    return "# HELP x y\n" + "\n".join(lines) + "\n"


BEFORE = {"unique_keys_total": 100, "cache_hits_total": 50, "cache_misses_total": 10,
          "device_reads_total": 1, "background_reads_total": 0, "dram_bytes": 1 << 20,
          "dram_limit": 1 << 30, "nvme_bytes": 5, "nvme_limit": 0}  # fmt: skip
AFTER = {**BEFORE, "unique_keys_total": 1100, "cache_hits_total": 80, "cache_misses_total": 20,
         "device_reads_total": 21, "background_reads_total": 4, "dram_bytes": 3 << 20}  # fmt: skip


def test_rates_hits_latencies_and_filling() -> None:
    before = cli_top.read(metrics({0.001: 5, 0.01: 0}, **BEFORE), 10.0)
    after = cli_top.read(metrics({0.001: 5, 0.01: 100}, **AFTER), 14.0)
    now = cli_top.between("a:1", before, after)
    assert (now.keys_per_s, now.hit_ratio, now.seconds) == (250.0, 0.75, 4.0)
    assert (now.device_reads_per_s, now.background_reads_per_s) == (5.0, 1.0)
    assert now.p50_ms == pytest.approx(5.5)
    assert now.p99_ms == pytest.approx(9.91)
    assert (now.dram_bytes, now.dram_limit, now.nvme_bytes) == (3 << 20, 1 << 30, 5)
    assert now.connections == 3
    line = cli_top.show(now)
    assert "75.0%" in line
    assert "3MiB/1GiB" in line
    assert "5B " in line


def test_nothing_happened_and_a_new_start() -> None:
    after = cli_top.read(metrics({0.001: 5}, **AFTER), 14.0)
    same = cli_top.between("a:1", after, cli_top.read(metrics({0.001: 5}, **AFTER), 15.0))
    assert (same.keys_per_s, same.hit_ratio, same.p50_ms, same.p99_ms) == (0.0, None, None, None)
    assert cli_top.show(same).count(" - ") == 3
    anew = cli_top.between("a:1", after, cli_top.read(metrics({0.001: 1}, **BEFORE), 16.0))
    assert anew.keys_per_s == 0.0
    opening = cli_top.between("a:1", cli_top.read("", 1.0), after)
    assert "being opened" in cli_top.show(opening)


def test_the_metrics_of_a_server_are_read() -> None:
    """By the names and the form that this version writes."""
    counted = Metrics("1", (0, 1), "asyncio")
    for _ in range(10):
        counted.observe("lookup", "ok", 0.002, 0.0)
        counted.observe("flush", "ok", 5.0, 0.0)
    look = cli_top.read(counted.exposition(None).decode(), 0.0)
    assert (look.within[0.001], look.within[0.0025], look.within[float("inf")]) == (0, 10, 10)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return cli.main(["top", *arguments]), *capsys.readouterr()


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        code, out, err = run(capsys, address, "--once", "--json")
    assert (code, out) == (5, "")
    told = json.loads(err)
    assert told["error"] == "UnavailableError"
    assert address in told["message"]
    assert "--ops" in told["message"]


@pytest.mark.parametrize("answer", [b"220 mail\r\n", b"", b"HTTP/1.1 404 Not Found\r\n\r\n"])
def test_a_port_that_is_no_servers(capsys: pytest.CaptureFixture[str], answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            other, _ = listening.accept()
            other.recv(4096)
            other.sendall(answer)
            other.close()

        thread = threading.Thread(target=speak)
        thread.start()
        code, _, err = run(capsys, f"127.0.0.1:{listening.getsockname()[1]}", "--once")
        thread.join()
    assert code == 5
    assert err.startswith("hybridps: ops port")


@pytest.mark.parametrize(
    "wrong", [["a"], ["https://a:1"], ["a:x"], ["a:99999"], ["a:1", "--interval", "0"]]
)
def test_what_is_no_address(capsys: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    code, out, err = run(capsys, *wrong, "--once")
    assert (code, out) == (2, "")
    assert "give" in err


def test_a_server_that_goes_leaves_the_others_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(100))

    def look(server: str) -> cli_top.Look:
        if server == "gone:1":
            raise cli_top.UnavailableError("ops port gone:1 gives no metrics: refused; start it")
        at = next(looks)
        return cli_top.read(metrics({}, **{**AFTER, "unique_keys_total": 7 * at}), float(at))

    rounds: list[float] = []

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_top, "look", look)
    monkeypatch.setattr(cli_top.time, "sleep", sleep)
    code, out, _ = run(capsys, "gone:1", "http://here:2", "--json", "--interval", "3")
    first, *later = [json.loads(line) for line in out.splitlines()]
    assert (code, rounds) == (0, [3.0, 3.0, 3.0])
    assert [row["server"] for row in first] == ["gone:1"]
    for gone, here in later:
        assert gone["reason"].endswith("refused")
        assert (here["server"], here["keys_per_s"], here["reason"]) == ("here:2", 7.0, None)


def test_the_columns_stand_below_their_heads() -> None:
    wide = dict.fromkeys(asdict(cli_top.Now("x")))
    row: dict[str, Any] = {**wide, "server": "127.0.0.1:7441", "seconds": 2.0, "connections": 12}
    row |= {"keys_per_s": 1234567.0, "hit_ratio": 1.0, "p50_ms": 0.125, "p99_ms": 9999.99}
    row |= {"device_reads_per_s": 123456.0, "background_reads_per_s": 0.0}
    row |= {"dram_bytes": 1 << 33, "dram_limit": 1 << 34, "nvme_bytes": 1, "nvme_limit": 1 << 40}
    assert len(cli_top.show(cli_top.Now(**row))) == len(cli_top._HEAD)
