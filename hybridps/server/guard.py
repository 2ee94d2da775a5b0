"""Who gets into a server: its tokens and certificates, looked at again while it runs.

A file that became bad changes nothing and is told in the log, so that a slip of an operator locks
nobody out.
"""

import asyncio
import ssl

from hybridps.config import ServerConfig
from hybridps.errors import ConfigError
from hybridps.security.tls import ServerContext
from hybridps.security.tokens import Keyring
from hybridps.server.logs import Logger
from hybridps.server.workers import Workers
from hybridps.verbs.kinds import Lane

REFRESH_S = 2.0

log = Logger("hybridps.server")


class Guard:
    """Both of them, each None where the server asks for none. Raises: ConfigError."""

    def __init__(self, config: ServerConfig) -> None:
        self.keyring = None if config.token_file is None else Keyring(config.token_file)
        self._tls = None if config.tls is None else ServerContext(config.tls)

    @property
    def tls(self) -> ssl.SSLContext | None:
        """For the TCP listener."""
        return None if self._tls is None else self._tls.context

    async def watch(self, workers: Workers) -> None:
        """Reads files that have changed, for ever."""
        while True:
            await asyncio.sleep(REFRESH_S)
            # A file may lie on a slow disk.
            await workers.run(Lane.LOOKS, self._refresh)

    def _refresh(self) -> None:
        for name, files in (("tokens", self.keyring), ("certificates", self._tls)):
            try:
                if files is not None and files.refresh():
                    log.info("read again", what=name)
            except ConfigError as error:
                log.warning("not taken, the last ones go on", what=name, reason=str(error))
