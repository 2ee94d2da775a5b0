"""A progress bar that stays out of the way of pipes and logs."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts up to `total` on stderr; where that is no terminal, one line when done."""

    def __init__(self, title: str, total: int, unit: str = " samples", *, shown: bool) -> None:
        self._title, self._shown = title, shown
        self._start = time.perf_counter()
        self._bar = tqdm(
            total=total, desc=title, unit=unit, unit_scale=True, disable=not shown,
            dynamic_ncols=True, file=sys.stderr,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if error is None and not self._shown:
            seconds = time.perf_counter() - self._start
            print(f"{self._title}: done in {seconds:.1f} s", file=sys.stderr, flush=True)

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self._bar.update(count)
