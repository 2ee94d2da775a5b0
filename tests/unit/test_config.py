"""Goal: every setting has the right precedence, range and message. Method: `load` with given
arguments, environment and files; each refusal is matched on the name, the value and the remedy."""

from pathlib import Path

import pytest

from hybridps import budgets, config
from hybridps.config import MIB, Address, load
from hybridps.errors import ConfigError
from hybridps.security.tls import ServerFiles


def toml(path: Path, text: str) -> str:
    file = path / "server.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def refused(argv: list[str], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(argv, environ or {})
    text = str(error.value)
    assert "\n" not in text
    return text


def test_defaults_are_those_of_the_contract() -> None:
    settings = load([], {})
    assert settings.data == Path("hybridps-data")
    assert settings.listen == Address("127.0.0.1", 7440)
    assert settings.ops == Address("127.0.0.1", 7441)
    assert settings.unix is None
    assert (settings.durability, settings.shard, settings.loop) == ("interval", (0, 1), "auto")
    assert settings.threads == config.cores()
    assert settings.dram_bytes == config.ram_bytes() // 4 // MIB * MIB
    assert settings.inflight_max_bytes == 64 * MIB
    assert settings.insecure is False


def test_default_nvme_counts_what_the_store_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "free_disk_bytes", lambda place: (place == tmp_path) * 800 * MIB)
    assert load(["--data", str(tmp_path)], {}).nvme_bytes == 600 * MIB


def test_the_cold_cap_is_three_quarters_of_its_own_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {tmp_path / "cold": 400 * MIB}
    monkeypatch.setattr(budgets, "free_disk_bytes", lambda place: held[place])
    flags = ["--nvme", "64MiB", "--cold", str(tmp_path / "cold")]
    settings = load(flags, {})
    assert (settings.cold, settings.cold_cap_bytes) == (tmp_path / "cold", 300 * MIB)
    assert load(flags, {"HYBRIDPS_COLD_CAP": "20MiB"}).cold_cap_bytes == 20 * MIB
    held[tmp_path / "cold"] = 20 * MIB
    with pytest.raises(ConfigError, match=r"cold directory.*--cold-cap"):
        load(flags, {})
    assert load(["--nvme", "64MiB"], {}).cold is None


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = toml(tmp_path, 'dram = "16MiB"\nnvme = "1GiB"\nthreads = 3\ndurability = "none"\n')
    environ = {"HYBRIDPS_DRAM": "32MiB", "HYBRIDPS_NVME": "2GiB", "PATH": "/bin"}
    settings = load(["--config", file, "--dram", "64MiB"], environ)
    assert settings.dram_bytes == 64 * MIB
    assert settings.nvme_bytes == 2048 * MIB
    assert (settings.threads, settings.durability) == (3, "none")
    assert settings.loop == "auto"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = toml(tmp_path, "threads = 7\n")
    assert load([], {"HYBRIDPS_CONFIG": file}).threads == 7


def test_every_setting_can_come_from_file_and_environment(tmp_path: Path) -> None:
    values = {
        "data": "d",
        "listen": "127.0.0.1:0",
        "unix": "run/s",
        "ops": "off",
        "dram": "9MiB",
        "nvme": "65MiB",
        "cold": "c",
        "cold_cap": "66MiB",
        "durability": "always",
        "shard": "0/1",
        "threads": "5",
        "loop": "asyncio",
        "insecure": "true",
        "frame_limit": "1MiB",
        "keys_limit": "10",
        "connections": "11",
        "inflight": "2MiB",
        "log_format": "text",
        "drain": "1.5",
        "restart_on_failure": "true",
        "token_file": "t.toml",
        "tls_cert": "c.pem",
        "tls_key": "k.pem",
        "tls_client_ca": "a.pem",
        "scrub_rate": "1MiB",
        "checkpoint_path": "saved",
        "checkpoint_every": "15m",
        "checkpoint_keep": "4",
        "follow": "hps://other:7440",
        "tables": "item,user",
        "follow_token_file": "f.token",
        "follow_ca": "f.pem",
    }
    assert sorted(values) == sorted(setting.name for setting in config.SETTINGS)
    file = toml(tmp_path, "".join(f'{name} = "{value}"\n' for name, value in values.items()))
    environ = {f"HYBRIDPS_{name.upper()}": value for name, value in values.items()}
    settings = load([], environ)
    assert settings == load(["--config", file], {})
    assert settings.ops is None
    assert (settings.shard, settings.threads, settings.drain_s) == ((0, 1), 5, 1.5)
    assert settings.frame_limit_bytes == MIB
    assert settings.tls == ServerFiles(Path("c.pem"), Path("k.pem"), Path("a.pem"))
    assert settings.token_file == Path("t.toml")
    told = settings.checkpoint_path, settings.checkpoint_every_s, settings.checkpoint_keep
    assert told == (Path("saved"), 900, 4)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--drm", "8MiB"], ["'--drm'", "--dram"]),
        (["--listne=1"], ["--listne", "--listen"]),
        (["serve"], ["'serve'"]),
        (["--dram"], ["--dram", "expected one argument"]),
        (["--dram", "7MiB"], ["--dram is '7MiB'", "at least 8MiB"]),
        (["--dram", "lots"], ["--dram is 'lots'", "512MiB"]),
        (["--dram", "-1"], ["--dram", "-1"]),
        (["--nvme", "63MiB"], ["--nvme is '63MiB'", "at least 64MiB"]),
        (["--cold", ""], ["--cold is ''", "path"]),
        (["--cold", "c", "--cold-cap", "1MiB"], ["--cold-cap is '1MiB'", "at least 16MiB"]),
        (["--cold-cap", "1GiB"], ["--cold-cap is given", "give --cold"]),
        (["--cold-cop", "1GiB"], ["--cold-cop", "--cold-cap"]),
        (["--threads", "0"], ["--threads is '0'", "1 to 1024"]),
        (["--threads", "2.5"], ["--threads is '2.5'", "whole number"]),
        (["--durability", "allways"], ["'allways'", "did you mean always"]),
        (["--loop", "trio"], ["'trio'", "auto, uvloop, asyncio"]),
        (["--shard", "2/2"], ["'2/2'", "0 to N - 1"]),
        (["--shard", "1"], ["'1'", "I/N"]),
        (["--listen", "7440"], ["'7440'", "HOST:PORT"]),
        (["--listen", "127.0.0.1:70000"], ["127.0.0.1:70000", "HOST:PORT"]),
        (["--listen", "off"], ["--listen is off", "--unix"]),
        (["--listen", "0.0.0.0:7440"], ["--listen is 0.0.0.0:7440", "insecure = true"]),
        (["--ops", "[::]:7441"], ["--ops is [::]:7441", "insecure = true"]),
        (["--listen", "example.org:1"], ["example.org:1", "insecure"]),
        (["--checkpoint-every", "1h"], ["--checkpoint-every needs checkpoint_path"]),
        (["--checkpoint-path", "p"], ["--checkpoint-path needs", "checkpoint_every"]),
        (["--checkpoint-every", "1y"], ["'1y'", "15m"]),
        (
            ["--checkpoint-every", "1h", "--checkpoint-path", "p", "--shard", "1/2"],
            ["one of 2 shards", "checkpoint create"],
        ),
        (["--tls-cert", "c.pem"], ["--tls-cert is given without tls_cert and tls_key"]),
        (["--tls-client-ca", "c.pem"], ["--tls-client-ca is given without"]),
        (["--token_file", "t"], ["'--token_file'", "--token-file"]),
        (["--config", "/nonexistent.toml"], ["/nonexistent.toml", "No such file"]),
        (["--data", ""], ["--data is ''", "path"]),
    ],
)
def test_bad_flags_are_refused(argv: list[str], parts: list[str]) -> None:
    text = refused(argv)
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("drum = 1", ["unknown key 'drum'", "dram"]),
        ("[server]\ndram = 1", ["unknown key 'server'"]),
        ("config = 'x'", ["unknown key 'config'"]),
        ("dram = true", ["dram", "True", "512MiB"]),
        ("threads = true", ["threads", "whole number"]),
        ("insecure = 'perhaps'", ["insecure", "true or false"]),
        ("keys_limit = 0", ["keys_limit", "from 1"]),
        ("connections = -4", ["connections", "from 1"]),
        ("frame_limit = '128MiB'", ["frame_limit 128MiB", "inflight 64MiB"]),
        ("frame_limit = 10", ["frame_limit", "at least 4KiB"]),
        ("log_format = 'xml'", ["log_format", "json, text"]),
        ("drain = 'soon'", ["drain", "seconds"]),
        ("dram = ", ["is not TOML"]),
        ("data = 3", ["data", "path"]),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    file = toml(tmp_path, text)
    message = refused(["--config", file])
    for part in [file, *parts] if "inflight" not in message else parts:
        assert part in message


def test_unknown_environment_names_are_refused_with_the_nearest() -> None:
    text = refused([], {"HYBRIDPS_DRAMM": "8MiB"})
    assert "HYBRIDPS_DRAMM" in text
    assert text.endswith("HYBRIDPS_DRAM")
    assert "HYBRIDPS_THREADS is 'many'" in refused([], {"HYBRIDPS_THREADS": "many"})


@pytest.mark.parametrize("service", ["", "OPS_", "SHARD_0_"])
def test_addresses_of_services_are_no_settings(service: str) -> None:
    environ = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "7440",
        "SERVICE_PORT_HPS": "7440",
        "PORT": "tcp://10.0.0.1:7440",
        "PORT_7440_TCP": "tcp://10.0.0.1:7440",
        "PORT_7440_TCP_PROTO": "tcp",
        "PORT_7440_TCP_PORT": "7440",
        "PORT_53_UDP_ADDR": "10.0.0.1",
    }
    injected = {f"HYBRIDPS_{service}{name}": value for name, value in environ.items()}
    # Not of the free disk, which others use meanwhile.
    own = ["--dram", "8MiB", "--nvme", "64MiB"]
    assert load(own, injected) == load(own, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [("HYBRIDPS_PORT", "7440"), ("HYBRIDPS_SERVICE", "x"), ("HYBRIDPS_LISTEN_PORT", "1")],
)
def test_what_a_person_meant_as_a_setting_is_refused(name: str, text: str) -> None:
    assert name in refused([], {name: text})


def test_names_of_limits_are_no_flags() -> None:
    assert "'--insecure'" in refused(["--insecure"])


TLS = ("--tls-cert", "c.pem", "--tls-key", "k.pem")


def test_a_bind_beyond_loopback_takes_tls_and_tokens() -> None:
    wide = ("--listen", "0.0.0.0:7440")
    for half in (TLS, ("--token-file", "t.toml")):
        assert "give --tls-cert, --tls-key and --token-file" in refused([*wide, *half])
    secured = load([*wide, *TLS, "--token-file", "t.toml"], {})
    assert secured.is_secured
    assert not secured.insecure
    # The ops port has neither.
    text = refused([*TLS, "--token-file", "t.toml", "--ops", "0.0.0.0:7441"])
    assert "--ops is 0.0.0.0:7441" in text


def test_insecure_allows_a_bind_beyond_loopback(tmp_path: Path) -> None:
    file = toml(tmp_path, "insecure = true\n")
    settings = load(["--config", file, "--listen", "0.0.0.0:0", "--ops", "[::]:0"], {})
    assert settings.listen == Address("0.0.0.0", 0)  # noqa: S104 - what is tested
    assert str(settings.ops) == "[::]:0"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    listen = load(["--listen", address], {}).listen
    assert listen is not None
    assert listen.is_loopback


def test_too_little_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "free_disk_bytes", lambda _: 80 * MIB)
    text = refused(["--data", "somewhere"])
    assert "somewhere" in text
    assert "64MiB" in text


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(["--help"], {})
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for setting in config.SETTINGS:
        spelt = config.flag_of(setting.name) if setting.metavar else setting.name
        assert spelt in text
