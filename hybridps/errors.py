"""Everything that can go wrong, as one tree.

HybridPSError
+-- BadInputError        also ValueError       the caller's data; nothing changed
+-- TableNotFoundError   also KeyError         no such table, or the handle's table was dropped
+-- TableMismatchError                         the name is taken by a table of another shape
+-- StoreFullError                             a byte cap leaves no room; no value changed
+-- CorruptionError                            bytes on disk are not what was written
+-- ConfigError                                a setting or directory cannot be used
+-- UnavailableError     also ConnectionError  no server answers, or the store is closed
+-- DeadlineError        also TimeoutError     the call's time is over
+-- CursorError                                changes since then cannot be told any more
+-- ReadOnlyError                              a replica only reads; ask the one it follows
+-- StaleError           also UnavailableError the replica is behind by more than the call allows
+-- OverloadedError                            a limit of the server is reached; nothing changed
+-- AuthError                                  the token does not allow it, or TLS was refused

Texts name the thing, the value seen and what to do. The Rust module raises these classes too.
"""

from typing import Final


class HybridPSError(Exception):
    """Base of every error of hybridps."""

    def __str__(self) -> str:
        # KeyError would show the repr of its argument, quotes included.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class BadInputError(HybridPSError, ValueError):
    """The caller's data is not acceptable; refused whole, no row changed."""


class TableNotFoundError(HybridPSError, KeyError):
    """No table of that name, or the table of this handle was dropped."""


class TableMismatchError(HybridPSError):
    """A table of that name exists with another shape; each difference is named."""


class StoreFullError(HybridPSError):
    """A DRAM or NVMe cap leaves no room. No value changed; a training read may have made some of
    its new rows.
    """


class CorruptionError(HybridPSError):
    """Bytes on disk are not what was written; the damaged row was not served."""


class ConfigError(HybridPSError):
    """A setting, URL or data directory cannot be used."""


class UnavailableError(HybridPSError, ConnectionError):
    """No server answers, or the store was closed or taken over."""


class DeadlineError(HybridPSError, TimeoutError):
    """The time given to a call is over; a push may still have been applied."""


class CursorError(HybridPSError):
    """What changed since a cursor cannot be told: begin with None."""


class ReadOnlyError(HybridPSError):
    """The server is a replica, which changes nothing; the one that it follows does."""


class StaleError(UnavailableError):
    """The replica is behind by more than the call allows."""


class OverloadedError(HybridPSError):
    """The server holds as much as it takes at a time; the call may pass later. No row changed."""


class AuthError(HybridPSError):
    """The server asks for a token, or the one given does not allow the call; nothing changed."""


BY_NAME: Final[dict[str, type[HybridPSError]]] = {
    cls.__name__: cls
    for cls in (
        BadInputError,
        TableNotFoundError,
        TableMismatchError,
        StoreFullError,
        CorruptionError,
        ConfigError,
        UnavailableError,
        DeadlineError,
        CursorError,
        ReadOnlyError,
        StaleError,
        OverloadedError,
        AuthError,
    )
}


def from_reason(reason: str) -> HybridPSError:
    """The exception that stands for "<class>: <text>", the reason of a wire exception."""
    name, separator, text = reason.partition(": ")
    cls = BY_NAME.get(name)
    if not separator or cls is None:
        return HybridPSError(reason)
    return cls(text)
