"""What a verb asks of its caller, and a token allows."""

import enum


class Right(enum.IntEnum):
    """Each includes those below it."""

    # Rows, names and counters as they are.
    READ = 1
    # Makes tables and rows, and changes rows.
    TRAIN = 2
    # Takes away what others use, or what the machine has.
    ADMIN = 3

    @property
    def word(self) -> str:
        """As people spell it."""
        return self.name.lower()
