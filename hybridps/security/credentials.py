"""What a client shows to its servers: a token, and how its connections are encrypted."""

import ssl
from dataclasses import dataclass, field
from typing import Any

from hybridps.errors import AuthError, ConfigError
from hybridps.security.tls import ClientFiles, client_files


@dataclass(frozen=True)
class Credentials:
    """Kept by a client for as long as it connects. A copy in another process has them too."""

    # Never shown: what prints a client must not print it.
    token: str = field(default="", repr=False)
    tls: ClientFiles | None = None

    def context(self) -> ssl.SSLContext | None:
        """For one client's connections; None: they are not encrypted. Raises ConfigError."""
        return None if self.tls is None else self.tls.context()

    def name_of(self, host: str) -> str:
        """What the certificate of the server at `host` must be for."""
        return (self.tls and self.tls.server_name) or host


# Of a client that shows nothing.
NOBODY = Credentials()


def credentials(token: Any, tls: Any) -> Credentials:
    """What `connect(token=, tls=)` means. Raises ConfigError, which never shows a token."""
    if token is not None and (not isinstance(token, str) or not token.isprintable()):
        raise ConfigError(
            f"token is no printable str but {type(token).__name__}; give it as issued"
        )
    files = client_files(tls)
    if files is not None:
        files.context()  # So that a bad file shows at once.
    return Credentials(token or "", files)


def refusal(error: OSError, address: str) -> AuthError | None:
    """What a failed handshake says that another attempt would not change; None for all else."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthError(
            f"{address} showed a certificate that is not trusted: {error.verify_message}; give"
            " connect(tls=) the file of its authority, or its server_name"
        )
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return AuthError(f"{address} does not speak TLS; connect without tls=")
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return AuthError(
            f"{address} refused the connection ({error.reason}); if it asks clients for a"
            " certificate, give connect(tls=) cert and key"
        )
    return None


_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
