"""What a server must know of a verb to run it beside others: its order, its lane, its cut.

So that a connection can keep the order of calls, and a server can tell what may wait for what,
without a word about what verbs mean.
"""

from enum import Enum, auto


class Order(Enum):
    """How a verb stands to the others of its connection."""

    # Sees every earlier push; reads between two pushes overlap.
    READ = auto()
    # Changes what other verbs see, or who the caller is: waits for all earlier calls, and later
    # ones wait for it.
    PUSH = auto()
    # Long, and promises nothing about calls without an answer: neither waits nor is waited for.
    FREE = auto()


class Lane(Enum):
    """A queue with threads of its own: a call may stand behind others of its lane, and behind no
    others. So what may wait for room in the log, for a sync, or for the device on nobody's behalf
    keeps no reader, no newcomer and no operator waiting.
    """

    # Rows as they are: the device may be waited for, room never.
    READS = "reads"
    # What makes rows or changes them waits for room in the log, for half a minute if need be.
    PUSHES = "pushes"
    # Answered from memory: who is there, names, counters.
    LOOKS = "looks"
    # What followers ask: rows are read for them, and turns of calls waited for.
    CHANGES = "changes"
    # What writes the manifest, syncs, or walks a whole table.
    ORDERS = "orders"
    # The server's own looks at its counters; no verb runs here.
    SAMPLES = "samples"


class Cut(Enum):
    """What becomes of a call whose arrays fit no message."""

    # Refused: the reply decides how much fits, so its verb cuts it before.
    NEVER = auto()
    # Several calls.
    CALLS = auto()
    # Parts that the server applies as one.
    PARTS = auto()
