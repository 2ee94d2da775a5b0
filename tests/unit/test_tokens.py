"""Goal: a token allows what its entry says, at the moment of each call, and no error tells a token.
Method: files written by hand, a clock of the test, every kind of entry that is no good."""

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hybridps.errors import AuthError, ConfigError
from hybridps.security.rights import Right
from hybridps.security.tokens import Keyring, create, read


def entry(token: str, name: str = "t", **more: str) -> str:
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    told = {"name": f'"{name}"', "sha256": f'"{sha256}"', "verbs": '"read"'} | more
    return "[[token]]\n" + "".join(f"{k} = {v}\n" for k, v in told.items())


def keyring(folder: Path, *entries: str, now_s: list[float] | None = None) -> Keyring:
    path = folder / "tokens.toml"
    path.write_text("".join(entries))
    clock = now_s or [0.0]
    return Keyring(path, lambda: clock[0])


def test_each_right_includes_those_below(tmp_path: Path) -> None:
    rights = [right.word for right in Right]
    ring = keyring(tmp_path, *(entry(w, w, verbs=f'"{w}"') for w in rights))
    for word in rights:
        access = ring.login(word)
        for right in Right:
            if right <= Right[word.upper()]:
                access.check("someVerb", right, ["any"])
            else:
                with pytest.raises(AuthError, match=f"'{word}' and someVerb needs '{right.word}'"):
                    access.check("someVerb", right, ["any"])


def test_tables_are_patterns_of_whole_names(tmp_path: Path) -> None:
    access = keyring(tmp_path, entry("x", tables='["item", "user_*"]')).login("x")
    access.check("lookup", Right.READ, ["item", "user_", "user_7"])
    for refused in ("items", "Item", "my_user_7", "*", ""):
        with pytest.raises(AuthError, match="is for tables item, user_"):
            access.check("lookup", Right.READ, ["item", refused])


def test_a_token_ends_when_its_time_is_over_also_in_open_connections(tmp_path: Path) -> None:
    ends = datetime(2027, 1, 1, tzinfo=UTC)
    now = [ends.timestamp() - 1]
    ring = keyring(tmp_path, entry("x", expires=ends.isoformat()), now_s=now)
    access = ring.login("x")
    access.check("lookup", Right.READ, ())
    now[0] += 1
    for attempt in (lambda: access.check("lookup", Right.READ, ()), lambda: ring.login("x")):
        with pytest.raises(AuthError, match=r"'t' expired at 2027-01-01T00:00:00\+00:00"):
            attempt()


def test_two_tokens_of_one_name_are_valid_at_once_and_one_is_revoked(tmp_path: Path) -> None:
    ring = keyring(tmp_path, entry("old"), entry("new", verbs='"train"'))
    old, new = ring.login("old"), ring.login("new")
    assert not ring.refresh()
    keyring(tmp_path, entry("new", verbs='"admin"'))
    assert ring.refresh()
    assert not ring.refresh()
    with pytest.raises(AuthError, match="'t' was revoked"):
        old.check("lookup", Right.READ, ())
    new.check("dropTable", Right.ADMIN, ())
    assert ring.login("new").name == "t"


def test_a_file_that_became_bad_changes_nothing(tmp_path: Path) -> None:
    ring = keyring(tmp_path, entry("x"))
    access = ring.login("x")
    (tmp_path / "tokens.toml").write_text("[[token]")
    with pytest.raises(ConfigError, match="not TOML"):
        ring.refresh()
    assert not ring.refresh(), "told once"
    access.check("lookup", Right.READ, ())
    (tmp_path / "tokens.toml").unlink()
    with pytest.raises(ConfigError, match="cannot read token file"):
        ring.refresh()
    access.check("lookup", Right.READ, ())


def test_who_is_unknown_is_refused_without_a_hint(tmp_path: Path) -> None:
    ring = keyring(tmp_path, entry("secret-token"))
    for wrong in ("secret-tokem", "secret-token ", "t", "\0", "\udcff"):
        with pytest.raises(AuthError, match="does not know the token") as error:
            ring.login(wrong)
        assert "secret" not in str(error.value)
    with pytest.raises(AuthError, match="none was given"):
        ring.login("")


def test_what_create_prints_makes_the_token_valid(tmp_path: Path) -> None:
    expires = datetime.now(UTC) + timedelta(days=1)
    token, lines = create("me@here", Right.TRAIN, ["a*", 'quo"te'], expires)
    other, _ = create("me@here", Right.TRAIN)
    assert token != other
    assert token not in lines
    path = tmp_path / "tokens.toml"
    path.write_text(lines)
    made = read(path).find(token)
    assert made is not None
    assert (made.name, made.right, made.tables) == ("me@here", Right.TRAIN, ("a*", 'quo"te'))
    assert made.expires_s == int(expires.timestamp())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", r"holds no \[\[token"),
        ("token = 3", r"holds no \[\[token"),
        ("[[token]]\n", "token 1 of .*name is None"),
        ("[[tokens]]\nname='a'", r"holds no \[\[token"),
        (entry("x", name="a b"), "name is 'a b'"),
        (entry("x", sha256='"secret"'), "sha256 is not 64 hexadecimal digits"),
        (entry("x", verbs='"write"'), "verbs is 'write'; give read, train or admin"),
        (entry("x", verbs="[]"), r"verbs is \[\]"),
        (entry("x", verbs='["read", 1]'), "verbs is"),
        (entry("x", tables='"item"'), "tables is 'item'; give a list"),
        (entry("x", tables="[]"), "tables is"),
        (entry("x", expires="2027-01-01T00:00:00"), "give a time with its zone"),
        (entry("x", expires="3"), "expires is 3"),
        (entry("x", colour='"red"'), "unknown key 'colour'"),
        (entry("y") + entry("x") + entry("x"), "token 3 of .* stands there before"),
        ("token = [1]", "token 1 of .*: give a table"),
        ("\xff", r"holds no \[\[token|not TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=told) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    keyring(tmp_path, entry("x"))
    path = tmp_path / "tokens.toml"
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod go-w"):
        read(path)
    path.chmod(0o600)
    assert len(read(path)) == 1
    if os.geteuid():
        path.chmod(0)
        with pytest.raises(ConfigError, match="cannot read token file"):
            read(path)


def test_a_list_of_verbs_means_the_highest(tmp_path: Path) -> None:
    access = keyring(tmp_path, entry("x", verbs='["read", "train"]')).login("x")
    access.check("applyGradients", Right.TRAIN, ())
