"""Which gradients an optimizer applied: they, and no others, are pushed.

TensorFlow computes gradients for many purposes and tells a layer of none. So a layer whose rows
get a gradient notes it in the `Ledger` of its store and returns a *receipt* as the gradient of the
`Anchor`, a variable that all layers of the store share. Receipts are added up as gradients are, and
the optimizer writes the sum into the anchor (Keras does so with variables that are
`overwrite_with_gradient`, past clipping, decay and slots). By the sum the anchor knows every note
that this application covers, and pushes them in one call. A gradient that nobody applies, of
`tape.gradient` for a log or a penalty, is never pushed.

A receipt is float32[2, SLOTS]: a unit at the note's slot, and below it the unit times its serial
number. What multiplies gradients, as a mean over micro-batches, multiplies the unit, and so the
rows.
"""

import threading
import weakref
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hybridps.errors import HybridPSError
from hybridps.layers.gradients import Gradient, push

# Notes that may wait at a time, over all layers of a store.
SLOTS: Final = 1024
# A note that this many later applications did not cover is forgotten.
APPLICATIONS: Final = 16
# Small and a power of two: norms over all gradients hardly see it, and it divides exactly.
UNIT: Final = 2.0**-60
_SERIALS: Final = 1 << 16

Receipt: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class _Note:
    serial: int
    epoch: int
    applications: int
    gradient: Gradient


class Ledger:
    """Gradients of one store that wait to be applied. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: list[_Note | None] = [None] * SLOTS
        self._next = 0
        self._epoch = 0
        self._applications = 0

    def note(self, gradient: Gradient) -> Receipt:
        """Keeps a gradient; the receipt stands for it."""
        with self._lock:
            slot, serial = self._next % SLOTS, self._next % _SERIALS + 1
            self._next += 1
            self._notes[slot] = _Note(serial, self._epoch, self._applications, gradient)
        receipt = np.zeros((2, SLOTS), np.float32)
        receipt[:, slot] = UNIT, UNIT * serial
        return receipt

    def apply(self, receipts: Receipt) -> None:
        """Pushes what the sum of receipts stands for, in one call; nothing for zeros.

        Keras writes zeros in steps that only accumulate (`gradient_accumulation_steps`), and at
        last the union of their receipts, where other variables get the mean. So what was noted in
        n different steps is divided by n.
        Raises: what `apply_gradients` raises, and HybridPSError for a note that is gone.
        """
        with self._lock:
            self._epoch += 1
            slots = np.flatnonzero(receipts[0])
            if not slots.size:
                return
            notes = [self._taken(slot, *receipts[:, slot]) for slot in slots.tolist()]
            self._applications += 1
            self._forget()
        steps = len({note.epoch for note in notes})
        factors = [float(receipts[0, slot]) / UNIT / steps for slot in slots.tolist()]
        # In the order in which they were noted: sums of float32 depend on it.
        order = sorted(range(len(notes)), key=lambda index: notes[index].serial)
        push(_scaled(notes[index].gradient, factors[index]) for index in order)

    def _taken(self, slot: int, unit: np.float32, serial: np.float32) -> _Note:
        note = self._notes[slot]
        # The quotient is exact unless something that is no power of two multiplied both.
        if note is None or round(float(serial) / float(unit)) != note.serial:
            raise HybridPSError(
                "a gradient that the optimizer applies is gone: it was applied before, or more than"
                f" {SLOTS} gradients or {APPLICATIONS} applications came between; apply gradients"
                " once, and soon after they were computed"
            )
        self._notes[slot] = None
        return note

    def _forget(self) -> None:
        oldest = self._applications - APPLICATIONS
        for slot, note in enumerate(self._notes):
            if note is not None and note.applications < oldest:
                self._notes[slot] = None


def _scaled(gradient: Gradient, factor: float) -> Gradient:
    if factor == 1.0:
        return gradient
    return replace(gradient, rows=gradient.rows * np.float32(factor))


class Anchor(keras.Variable):  # type: ignore[misc]
    """What ties the rows of a store to automatic differentiation; always zero, holds nothing.

    It is trainable while one of its layers is.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._layers: weakref.WeakSet[Any] = weakref.WeakSet()
        super().__init__(np.zeros((2, SLOTS), np.float32), name="hybridps_anchor", autocast=False)
        self.overwrite_with_gradient = True
        self._ledger = ledger

    def attach(self, layer: Any) -> None:
        """It is an anchor of this layer too."""
        self._layers.add(layer)

    @property
    def ledger(self) -> Ledger:
        """Where gradients wait."""
        return self._ledger

    @property
    def trainable(self) -> bool:
        """Whether one of the layers is; also before it has any, while TensorFlow makes it."""
        return not self._layers or any(layer.trainable for layer in self._layers)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        """A layer that is frozen freezes itself alone."""

    def assign(self, value: Any) -> Any:
        """Called by optimizers with the sum of receipts: pushes what it stands for."""
        value = tf.convert_to_tensor(value, tf.float32)
        if tf.executing_eagerly():
            self._ledger.apply(value.numpy())
        else:
            tf.numpy_function(self._apply, [value], [], stateful=True)
        return value

    def _apply(self, receipts: Receipt) -> None:
        self._ledger.apply(receipts)

    def assign_add(self, value: Any) -> Any:
        """Refused: see `assign_sub`."""
        return self.assign_sub(value)

    def assign_sub(self, value: Any) -> Any:  # noqa: ARG002 - no value will do
        """Refused: what an optimizer made of a receipt is none."""
        raise HybridPSError(
            "an optimizer updates the anchor of hybridps_tf layers by a rule of its own; use an"
            " optimizer of Keras 3.6 or later, which writes the gradient into it as it is"
        )


# One for each store of this process, while a layer holds it.
_anchors: weakref.WeakValueDictionary[int, Anchor] = weakref.WeakValueDictionary()
_anchors_lock = threading.Lock()


def anchor_of(ps: Any) -> Anchor:
    """The anchor of a store."""
    with _anchors_lock, tf.init_scope():
        anchor = _anchors.get(id(ps))
        if anchor is None:
            anchor = _anchors[id(ps)] = Anchor(Ledger())
        return anchor
