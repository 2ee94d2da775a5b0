"""Tokens: who may call which verbs of which tables, and until when. Read from a file that holds no
token, only the SHA-256 of each.

    [[token]]
    name = "trainer"                       # for logs and errors; several tokens may have one name
    sha256 = "d7a8fbb307d7809469ca9abcb0082e4f8d5651e46bd33b8f1dd3e3f0b1f3c2a1"
    verbs = "train"                        # read | train | admin; each includes those before it
    tables = ["item", "user_*"]            # all unless given
    expires = 2027-01-01T00:00:00Z         # never unless given

Two tokens of one name are valid at once, so that one can replace the other without a pause. The
file is looked at again while the server runs: what was removed from it is refused from then on,
in connections that are open too. Never here: sockets, verbs.
"""

import fnmatch
import hashlib
import hmac
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hybridps.errors import AuthError, ConfigError
from hybridps.security.rights import Right

FILE_MAX_BYTES: Final = 1 << 20
_TOKEN_BYTES: Final = 32
_KEYS: Final = frozenset({"name", "sha256", "verbs", "tables", "expires"})


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of the file."""

    name: str
    digest: bytes
    right: Right
    tables: tuple[str, ...] = ("*",)
    expires_s: float | None = None  # unix seconds

    @property
    def is_of_all_tables(self) -> bool:
        """Whether no table is kept from it."""
        return "*" in self.tables

    def may_touch(self, table: str) -> bool:
        """Whether the table's name fits one of the patterns; case counts."""
        return any(fnmatch.fnmatchcase(table, pattern) for pattern in self.tables)

    def refusal(self, verb: str, right: Right, tables: Iterable[str], now_s: float) -> str | None:
        """Why the call is refused, None if it is not. Names the token, never what it is."""
        whose = f"token {self.name!r}"
        if self.expires_s is not None and now_s >= self.expires_s:
            then = datetime.fromtimestamp(self.expires_s, UTC).isoformat(timespec="seconds")
            return f"{whose} expired at {then}; connect with a newer one"
        if right > self.right:
            return (
                f"{whose} is for {self.right.word!r} and {verb} needs {right.word!r}; use a token"
                " that has it"
            )
        refused = next((table for table in tables if not self.may_touch(table)), None)
        if refused is not None:
            return (
                f"{whose} is for tables {', '.join(self.tables)} and not for {refused!r}; use a"
                " token whose tables include it"
            )
        return None


class Tokens:
    """The entries of one reading of the file."""

    def __init__(self, entries: Iterable[Token]) -> None:
        self._entries = tuple(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, token: str) -> Token | None:
        """The entry of a token. Takes as long for every token, known or not."""
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        return found

    def again(self, entry: Token) -> Token | None:
        """The entry of the same token, as it is by now; None if it is no more."""
        return next((e for e in self._entries if e.digest == entry.digest), None)


class Keyring:
    """The tokens of a server, read anew when the file changes.

    Raises: ConfigError when the file cannot be used, which names the entry.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self.tokens = read(path)

    def refresh(self) -> bool:
        """Reads the file if it has changed; True if it was. Raises ConfigError, and goes on with
        what is known, when it cannot be used.
        """
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.tokens = read(self._path)
        return True

    def login(self, token: str) -> "Access":
        """What the bearer of a token may do. Raises AuthError."""
        if not token:
            raise AuthError("this server asks for a token and none was given; connect(token=...)")
        entry = self.tokens.find(token)
        if entry is None:
            raise AuthError(
                "this server does not know the token that was given; ask its operator for one, or"
                " see whether it was replaced"
            )
        access = Access(self, entry)
        access.check("login", Right.READ, ())
        return access

    def now_s(self) -> float:
        """Unix seconds."""
        return self._clock()


class Access:
    """What one connection may do: as the file says at the moment of each call."""

    def __init__(self, keyring: Keyring, entry: Token) -> None:
        self._keyring = keyring
        self._tokens = keyring.tokens
        self.entry = entry

    @property
    def name(self) -> str:
        """Of the token, for logs."""
        return self.entry.name

    def check(self, verb: str, right: Right, tables: Iterable[str]) -> None:
        """Raises AuthError when the token does not allow the verb on these tables any more."""
        if self._tokens is not self._keyring.tokens:
            entry = self._keyring.tokens.again(self.entry)
            if entry is None:
                raise AuthError(f"token {self.name!r} was revoked; connect with one that is valid")
            self._tokens, self.entry = self._keyring.tokens, entry
        refusal = self.entry.refusal(verb, right, tables, self._keyring.now_s())
        if refusal is not None:
            raise AuthError(refusal)


def create(
    name: str, right: Right, tables: Iterable[str] = ("*",), expires: datetime | None = None
) -> tuple[str, str]:
    """A new random token, and the entry of the file that makes it valid."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    lines = [
        "[[token]]",
        f"name = {_toml(name)}",
        f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"',
        f'verbs = "{right.word}"',
    ]
    patterns = list(tables)
    if patterns != ["*"]:
        lines.append(f"tables = [{', '.join(map(_toml, patterns))}]")
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(UTC).isoformat(timespec='seconds')}")
    return token, "\n".join(lines) + "\n"


def read(path: Path) -> Tokens:
    """The tokens of a file. Raises ConfigError naming file, entry and remedy."""
    try:
        if path.stat().st_mode & 0o022:
            raise ConfigError(
                f"token file {path} can be written by others than its owner; chmod go-w {path}"
            )
        with path.open("rb") as file:
            raw = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read token file {path}: {error.strerror}; give a file that this user may read"
        ) from None
    if len(raw) > FILE_MAX_BYTES:
        raise ConfigError(f"token file {path} holds more than {FILE_MAX_BYTES} bytes; shorten it")
    try:
        content = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path} is not TOML: {error}; correct it") from None
    if set(content) != {"token"} or not isinstance(content["token"], list):
        raise ConfigError(
            f"token file {path} holds no [[token]]; `hybridps token create` makes one"
        )
    entries = [_entry(n, told, path) for n, told in enumerate(content["token"], 1)]
    digests = [entry.digest for entry in entries]
    for n, entry in enumerate(entries, 1):
        if digests.index(entry.digest) != n - 1:
            raise ConfigError(f"token {n} of {path} is one that stands there before; remove one")
    return Tokens(entries)


def _entry(n: int, told: Mapping[str, Any], path: Path) -> Token:
    def refuse(what: str) -> ConfigError:
        return ConfigError(f"token {n} of {path}: {what}")

    if not isinstance(told, dict):
        raise refuse("give a table of name, sha256 and verbs")
    unknown = sorted(set(told) - _KEYS)
    if unknown:
        raise refuse(f"unknown key {unknown[0]!r}; give {', '.join(sorted(_KEYS))}")
    name, sha256 = told.get("name"), told.get("sha256")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.@-]{1,64}", name):
        raise refuse(f"name is {name!r}; give 1 to 64 letters, digits or any of _ . @ -")
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        # Not shown: it might be the token itself.
        raise refuse("sha256 is not 64 hexadecimal digits; give the SHA-256 of the token")
    right = _right(told.get("verbs"))
    if right is None:
        raise refuse(f"verbs is {told.get('verbs')!r}; give read, train or admin")
    tables = told.get("tables", ["*"])
    if not isinstance(tables, list) or not tables or not all(isinstance(t, str) for t in tables):
        raise refuse(f"tables is {tables!r}; give a list of names or patterns such as user_*")
    expires = told.get("expires")
    if expires is not None and (not isinstance(expires, datetime) or expires.tzinfo is None):
        raise refuse(f"expires is {expires!r}; give a time with its zone: 2027-01-01T00:00:00Z")
    expires_s = None if expires is None else expires.timestamp()
    return Token(name, bytes.fromhex(sha256), right, tuple(tables), expires_s)


def _right(verbs: Any) -> Right | None:
    """The highest of those named, by a word or a list of words."""
    words = verbs if isinstance(verbs, list) else [verbs]
    known = {right.word: right for right in Right}
    if not words or not all(isinstance(word, str) and word in known for word in words):
        return None
    return max(known[word] for word in words)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        now = path.stat()
    except OSError:
        return None
    return (now.st_mtime_ns, now.st_size, now.st_ino, now.st_mode)


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
