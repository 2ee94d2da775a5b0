"""A replica as a server takes it: settings to a follower, and a follower's life beside a store."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hybridps import _core
from hybridps.client.urls import parse_servers
from hybridps.config import ServerConfig
from hybridps.errors import ConfigError
from hybridps.replica import state
from hybridps.replica.answers import Answers
from hybridps.replica.follower import Followed, Follower
from hybridps.security.credentials import credentials
from hybridps.verbs.calls import Call, Keys, Site, Standing

# A replica is ready when it knows which tables there are, or at the latest then.
MEETS_S: Final = 2.0


def followed_of(config: ServerConfig) -> Followed | None:
    """Whom the settings say to follow, if anybody. Raises: ConfigError."""
    if config.follow is None:
        return None
    addresses = parse_servers(config.follow)
    if addresses is None:
        raise ConfigError(f"follow is {config.follow!r}; give the URL of servers, hps://HOST:PORT")
    if config.shard != (0, 1):
        raise ConfigError("shard is given with follow; a replica has all that it follows: leave it")
    shown = credentials(_token(config.follow_token_file), config.follow_ca)
    return Followed(config.follow, addresses, config.tables, shown)


def _token(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"follow_token_file {path} cannot be read: {error}") from None


def check_directory(data: Path) -> None:
    """Raises: ConfigError where a replica's directory would be written to by others."""
    if state.load(data) is not None:
        raise ConfigError(
            f"{data} is a replica's, whose rows have no optimizer slots; give follow, or another"
            " data directory"
        )


class Replica:
    """See the module."""

    def __init__(
        self, store: _core.Store, data: Path, followed: Followed, note: Callable[..., None]
    ) -> None:
        self._follower = Follower(store, data, followed, note)
        self._answers: Answers | None = None

    @property
    def url(self) -> str:
        """Whom it follows."""
        return self._follower.followed.url

    @property
    def standing(self) -> Standing:
        """Role, staleness and rows taken over."""
        return self._follower.standing

    @property
    def has_arriving(self) -> bool:
        """Whether there is a table whose rows are not all here."""
        return self._follower.has_arriving

    def arriving(self, table: int) -> str | None:
        """Its name, if that one is."""
        return self._follower.arriving(table)

    async def bring(self, asked: Sequence[tuple[int, Keys]]) -> None:
        """Brings the rows of these keys, by table. Raises: UnavailableError if it cannot."""
        await self._follower.bring(asked)

    async def answer(self, call: Call[Any], site: Site) -> Any:
        """What a replica answers in its own way; None: the store is to be asked."""
        if self._answers is None:
            self._answers = Answers(self._follower, site)
        return await self._answers.answer(call)

    async def start(self) -> None:
        """Follows from now on; returns when it has met the followed, or soon."""
        self._follower.start()
        await asyncio.to_thread(self._follower.wait_until_met, MEETS_S)

    async def stop(self) -> None:
        """Follows no longer; what was taken over is on the device."""
        await asyncio.to_thread(self._follower.stop)
