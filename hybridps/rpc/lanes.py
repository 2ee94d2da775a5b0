"""Which threads run which verb: a call may stand behind others of its lane, and behind no others.

So what may wait for room in the log, for a sync, or for the device on nobody's behalf keeps no
reader, no newcomer and no operator waiting.
"""

from enum import Enum


class Lane(Enum):
    """A queue with threads of its own."""

    # Rows as they are: the device may be waited for, room never.
    READS = "reads"
    # What makes rows or changes them waits for room in the log, for half a minute if need be.
    PUSHES = "pushes"
    # Answered from memory: who is there, names, counters.
    LOOKS = "looks"
    # What writes the manifest, syncs, or walks a whole table.
    ORDERS = "orders"
    # The server's own looks at its counters; no verb runs here.
    SAMPLES = "samples"


LANES = {
    "lookup": Lane.READS,
    "lookupOrInsert": Lane.PUSHES,
    "applyGradients": Lane.PUSHES,
    "assign": Lane.PUSHES,
    "remove": Lane.PUSHES,
    "createTable": Lane.ORDERS,
    "dropTable": Lane.ORDERS,
    "setLearningRate": Lane.ORDERS,
    "alter": Lane.ORDERS,
    "keys": Lane.ORDERS,
    "flush": Lane.ORDERS,
}


def lane_of(verb: str) -> Lane:
    """The lane of a verb, by its name in the schema."""
    return LANES.get(verb, Lane.LOOKS)
