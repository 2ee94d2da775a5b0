"""Stores of this process by URL, for layers that arrive by pickle: they share its connection."""

import threading
import weakref
from typing import Any

from hybridps.client.connect import connect

# Weak: users close their stores.
_stores: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def remember(ps: Any) -> None:
    """From now on `store_at` gives this one for its URL, while somebody holds it."""
    with _lock:
        _stores[str(ps.url)] = ps


def store_at(url: str) -> Any:
    """The store of that URL in this process; connected, with the default settings, if need be."""
    with _lock:
        ps = _stores.get(url)
        if ps is None:
            ps = _stores[url] = connect(url)
        return ps
