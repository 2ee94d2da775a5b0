"""Goal: URLs and settings of `connect` are read, or refused by name."""

from pathlib import Path
from typing import Any

import pytest

import hybridps as hps
from hybridps.client.urls import Address, local_settings, parse_servers

NONE: dict[str, Any] = {
    "dram": None, "nvme": None, "cold": None, "durability": None, "threads": None,
    "scrub_rate": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("hps://127.0.0.1:7440", [Address("127.0.0.1", 7440)]),
        ("hps://a:1,b:2/", [Address("a", 1), Address("b", 2)]),
        ("hps://[::1]:7440", [Address("::1", 7440)]),
        ("hps://a", [Address("a", 7440)]),
        ("hps://a/,b:1,[::1]", [Address("a", 7440), Address("b", 1), Address("::1", 7440)]),
        ("hps+unix:///run/hps.sock", [Address("/run/hps.sock", None)]),
        ("hps+unix:///a,/b", [Address("/a", None), Address("/b", None)]),
        ("local:./store", None),
    ],
)
def test_urls(url: str, addresses: list[Address] | None) -> None:
    assert parse_servers(url) == addresses


@pytest.mark.parametrize("address", [Address("::1", 7), Address("h", 7), Address("/s", None)])
def test_shown_addresses_read_back(address: Address) -> None:
    assert parse_servers(str(address)) == [address]


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:7440", "http://a:1", "hps://", "hps://a:", "hps://a:0", "hps://a:70000",
        "hps://a:x", "hps://:7440", "hps://::1", "hps://a:1,", "hps://a:1,a:1", "hps+unix://",
        7440, None, "local:",
    ],
)  # fmt: skip
def test_bad_urls(url: Any) -> None:
    with pytest.raises(hps.ConfigError, match="url"):
        hps.connect(url, timeout=0.1)


@pytest.mark.parametrize("name", ["dram", "nvme", "durability", "threads", "cold", "cold_cap"])
def test_settings_of_a_store_do_not_go_to_a_server(name: str) -> None:
    with pytest.raises(hps.ConfigError, match=f"{name}="):
        hps.connect("hps://127.0.0.1:1", timeout=0.1, **{name: 1})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"durability": "never"}, "durability"),
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"threads": "many"}, "threads"),
        ({"dram": "much"}, "dram is 'much'"),
        ({"dram": "1MiB"}, "dram is 1048576 bytes.*at least 8 MiB"),
        ({"nvme": 1.5}, "nvme is 1.5"),
        ({"nvme": "1MiB"}, "nvme is 1048576 bytes.*at least 64 MiB"),
        ({"cold": 7}, "cold is 7"),
        ({"cold": ""}, "cold is ''"),
        ({"cold_cap": "1GiB"}, "cold_cap is '1GiB'.*give cold="),
        ({"cold": "cold", "cold_cap": "1MiB"}, "cold_cap is 1048576 bytes.*at least 16 MiB"),
        ({"cold": "cold", "cold_cap": "much"}, "cold_cap is 'much'"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"client_id": ""}, "client_id"),
        ({"client_id": 3}, "client_id"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(hps.ConfigError, match=named):
        hps.connect(f"local:{tmp_path}", **settings)


def test_defaults_of_a_local_store(tmp_path: Path) -> None:
    settings = local_settings(f"local:{tmp_path / 'not' / 'yet'}", **NONE)
    assert settings.dram >= 8 << 20
    assert settings.nvme > 64 << 20
    assert settings.durability == "none"
    assert settings.threads >= 1
    assert settings.cold is None
    cold = tmp_path / "cold"
    given = local_settings("local:x", **NONE | {"cold": cold}, cold_cap="20MiB")
    assert given.cold == (str(cold), 20 << 20)
    given = local_settings("local:x", **NONE | {"cold": str(cold)})
    assert given.cold is not None
    assert given.cold[1] > 16 << 20
    given = local_settings("local:x", **NONE | {"dram": "1GiB", "nvme": "2GiB", "threads": 3})
    assert (given.dram, given.nvme, given.threads) == (1 << 30, 2 << 30, 3)
    assert settings.scrub_rate == 0
    assert local_settings("local:x", **NONE | {"scrub_rate": "1MiB"}).scrub_rate == 1 << 20
