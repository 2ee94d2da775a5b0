"""A store that writes down which data verbs it was asked for, and passes them on."""

from typing import Any

VERBS = ("lookup", "lookup_or_insert", "apply_gradients", "prefetch")


class Spy:
    """The store, and a list of (verb, argument) of the data verbs called."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in VERBS:
            return getattr(self.store, name)

        def call(tables: Any, **options: Any) -> Any:
            self.calls.append((name, tables))
            return getattr(self.store, name)(tables, **options)

        return call

    def pushes(self) -> list[Any]:
        """What was pushed, call by call."""
        return [tables for verb, tables in self.calls if verb == "apply_gradients"]

    def verbs(self) -> list[str]:
        """The verbs, in order."""
        return [verb for verb, _ in self.calls]
