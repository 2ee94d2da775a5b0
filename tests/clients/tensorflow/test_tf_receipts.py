"""Goal: a sum of receipts says which gradients it covers, whatever was added to it and how often
slots were used before. Method: random sums beside a list of what they should push."""

import numpy as np
import pytest
from hybridps_tf.receipts import APPLICATIONS, SLOTS, Ledger

from hybridps.errors import HybridPSError
from hybridps.layers.gradients import Gradient


class Store:
    def __init__(self):
        self.pushed = []

    def apply_gradients(self, batch):
        ((keys, rows),) = batch.values()
        self.pushed.append(dict(zip(keys.tolist(), rows[:, 0].tolist(), strict=True)))


def gradient(ps, key):
    return Gradient(ps, "item", np.array([key]), np.full((1, 2), key, np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_random_sums(seed):
    random, ps, ledger = np.random.default_rng(seed), Store(), Ledger()
    key = 0
    for _ in range(400):
        receipts = {}
        for _ in range(int(random.integers(1, 8))):
            key += 1
            receipts[key] = ledger.note(gradient(ps, key))
        # Gradients that nobody applies stay behind and are overtaken.
        applied = [k for k in receipts if random.random() < 0.7]
        factor = float(random.choice([1.0, 0.5, 1 / 3]))
        if not applied:
            continue
        ledger.apply(sum(receipts[k] for k in applied) * np.float32(factor))
        wanted = {k: pytest.approx(k * factor) for k in applied}
        assert ps.pushed.pop() == wanted
        assert list(wanted) == sorted(wanted), "in the order of their notes"
    assert key > SLOTS


def test_zeros_push_nothing_and_count_as_steps():
    ps, ledger = Store(), Ledger()
    receipts = []
    for key in (1, 2, 4):
        receipts.append(ledger.note(gradient(ps, key)))
        if key != 4:
            ledger.apply(np.zeros((2, SLOTS), np.float32))
    ledger.apply(np.maximum.reduce(receipts))
    assert ps.pushed == [{k: pytest.approx(k / 3) for k in (1, 2, 4)}]


def test_what_is_gone_is_told():
    ps, ledger = Store(), Ledger()
    receipt = ledger.note(gradient(ps, 1))
    ledger.apply(receipt)
    with pytest.raises(HybridPSError, match="applied before"):
        ledger.apply(receipt)
    overtaken = ledger.note(gradient(ps, 1))
    for key in range(SLOTS):
        ledger.note(gradient(ps, key))
    with pytest.raises(HybridPSError, match=str(SLOTS)):
        ledger.apply(overtaken)
    late = ledger.note(gradient(ps, 1))
    for _ in range(APPLICATIONS + 1):
        ledger.apply(ledger.note(gradient(ps, 2)))
    with pytest.raises(HybridPSError, match="gone"):
        ledger.apply(late)
    assert ps.pushed == [{1: 1.0}] + [{2: 2.0}] * (APPLICATIONS + 1)
