"""How long random campaigns last: short in `make test`, long under `make test-long`."""

import os

LONGER = 20


def rounds(count: int) -> int:
    """`count` rounds, or as many times more under HYBRIDPS_LONG."""
    return count * (LONGER if "HYBRIDPS_LONG" in os.environ else 1)
