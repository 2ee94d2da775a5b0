"""Every optimizer in plain NumPy, as its source states it: what the engine is held against.

Float32 arrays, coefficients in float64 as torch computes them; one row a key, slots and step counts
beside it. Steps only the rows that it is given, each once.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import hybridps as hps

Floats = NDArray[np.float32]


class Rule:
    """The rows of one table: `values` float32[n, dim]."""

    def __init__(self, optimizer: Any, values: Floats) -> None:
        self.o, self.x = optimizer, values.copy()
        start = getattr(optimizer, "initial_accumulator", 0.0)
        self.slots = {name: np.zeros_like(values) for name in ("m", "v", "top", "linear")}
        self.slots["sum"] = np.full_like(values, start)
        self.mean = np.full(len(values), start, np.float32)
        self.steps = np.zeros(len(values), np.int64)
        self.step_of = getattr(self, optimizer.KIND)

    def push(self, ids: NDArray[np.int64], gradients: Floats) -> None:
        """Repeated ids are summed in order, then each steps once."""
        keys, inverse = np.unique(ids, return_inverse=True)
        g = np.zeros((len(keys), self.x.shape[1]), np.float32)
        np.add.at(g, inverse, gradients)
        self.steps[keys] += 1
        self.x[keys] = self.step_of(keys, self.prepared(keys, g)).astype(np.float32)

    def prepared(self, keys: NDArray[np.int64], g: Floats) -> Floats:
        o = self.o
        if o.clip_value is not None:
            g = np.clip(g, -np.float32(o.clip_value), np.float32(o.clip_value))
        if o.clip_norm is not None:
            norm = np.linalg.norm(g.astype(np.float64), axis=1, keepdims=True)
            g = (g * np.minimum(1.0, o.clip_norm / np.maximum(norm, 1e-300))).astype(np.float32)
        if not isinstance(o, (hps.AdamW, hps.Lamb)):
            g = g + np.float32(o.weight_decay) * self.x[keys]
        return g

    def moments(self, keys: Any, g: Floats) -> tuple[Floats, Floats]:
        first, second = self.o.betas
        m, v = self.slots["m"], self.slots["v"]
        m[keys] = m[keys] * first + (1 - first) * g
        v[keys] = v[keys] * second + (1 - second) * g * g
        return m[keys], v[keys]

    def corrections(self, keys: Any) -> list[NDArray[np.float64]]:
        return [1 - beta ** self.steps[keys][:, None].astype(np.float64) for beta in self.o.betas]

    def sgd(self, keys: Any, g: Floats) -> Any:
        return self.x[keys] - self.o.learning_rate * g

    def momentum(self, keys: Any, g: Floats) -> Any:
        v = self.slots["v"]
        v[keys] = self.o.momentum * v[keys] + g
        along = g + self.o.momentum * v[keys] if self.o.nesterov else v[keys]
        return self.x[keys] - self.o.learning_rate * along

    def adagrad(self, keys: Any, g: Floats) -> Any:
        sums = self.slots["sum"]
        sums[keys] += g * g
        return self.x[keys] - self.o.learning_rate * g / (np.sqrt(sums[keys]) + self.o.eps)

    def row_wise_adagrad(self, keys: Any, g: Floats) -> Any:
        self.mean[keys] += (g * g).mean(axis=1)
        return (
            self.x[keys]
            - self.o.learning_rate * g / (np.sqrt(self.mean[keys]) + self.o.eps)[:, None]
        )

    def rms_prop(self, keys: Any, g: Floats) -> Any:
        v, alpha = self.slots["v"], self.o.alpha
        v[keys] = alpha * v[keys] + (1 - alpha) * g * g
        return self.x[keys] - self.o.learning_rate * g / (np.sqrt(v[keys]) + self.o.eps)

    def adam(self, keys: Any, g: Floats) -> Any:
        (m, v), (c1, c2) = self.moments(keys, g), self.corrections(keys)
        return self.x[keys] - self.o.learning_rate / c1 * m / (
            np.sqrt(v) / np.sqrt(c2) + self.o.eps
        )

    def adam_w(self, keys: Any, g: Floats) -> Any:
        self.x[keys] *= 1 - self.o.learning_rate * self.o.weight_decay
        return self.adam(keys, g)

    def ams_grad(self, keys: Any, g: Floats) -> Any:
        (m, v), (c1, c2) = self.moments(keys, g), self.corrections(keys)
        top = self.slots["top"]
        top[keys] = np.maximum(top[keys], v)
        root = np.sqrt(top[keys]) / np.sqrt(c2)
        return self.x[keys] - self.o.learning_rate / c1 * m / (root + self.o.eps)

    def r_adam(self, keys: Any, g: Floats) -> Any:
        (m, v), (c1, c2) = self.moments(keys, g), self.corrections(keys)
        steps, beta = self.steps[keys][:, None], self.o.betas[1]
        most = 2 / (1 - beta) - 1
        now = most - 2 * steps * (1 - c2) / c2
        with np.errstate(invalid="ignore"):
            ratio = np.sqrt((now - 4) * (now - 2) * most / ((most - 4) * (most - 2) * now))
        adaptive = np.where(now > 5, ratio * np.sqrt(c2) / (np.sqrt(v) + self.o.eps), 1)
        return self.x[keys] - self.o.learning_rate * m / c1 * adaptive

    def ada_belief(self, keys: Any, g: Floats) -> Any:
        (first, second), (m, s) = self.o.betas, (self.slots["m"], self.slots["v"])
        m[keys] = first * m[keys] + (1 - first) * g
        s[keys] = second * s[keys] + (1 - second) * (g - m[keys]) ** 2 + self.o.eps
        c1, c2 = self.corrections(keys)
        step = m[keys] / c1 / (np.sqrt(s[keys] / c2) + self.o.eps)
        return self.x[keys] - self.o.learning_rate * step

    def lamb(self, keys: Any, g: Floats) -> Any:
        (m, v), (c1, c2) = self.moments(keys, g), self.corrections(keys)
        x = self.x[keys]
        along = m / c1 / (np.sqrt(v / c2) + self.o.eps) + self.o.weight_decay * x
        lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, along)]
        usable = (lengths[0] > 0) & (lengths[1] > 0)
        trust = np.where(usable, lengths[0] / np.where(usable, lengths[1], 1), 1)
        return x - self.o.learning_rate * trust * along

    def ftrl(self, keys: Any, g: Floats) -> Any:
        return self.group_ftrl(keys, g, 0.0)

    def sparse_group_ftrl(self, keys: Any, g: Floats) -> Any:
        return self.group_ftrl(keys, g, self.o.l21)

    def group_ftrl(self, keys: Any, g: Floats, l21: float) -> Any:
        sums, linear, rate = self.slots["sum"], self.slots["linear"], self.o.learning_rate
        before = np.sqrt(sums[keys])
        sums[keys] += g * g
        linear[keys] += g - (np.sqrt(sums[keys]) - before) / rate * self.x[keys]
        z = lasso(linear[keys], self.o.l1, l21)
        return -z / (np.sqrt(sums[keys]) / rate + 2 * self.o.l2)

    def group_adam(self, keys: Any, g: Floats) -> Any:
        rate, second = self.o.learning_rate, self.o.betas[1]
        steps, linear = self.steps[keys][:, None], self.slots["linear"]
        old = 1 - second ** (steps - 1).astype(np.float64)
        before = np.sqrt(self.slots["v"][keys] / np.where(steps > 1, old, 1))
        (m, v), (c1, c2) = self.moments(keys, g), self.corrections(keys)
        now = np.sqrt(v / c2)
        grown = now - before + np.where(steps == 1, self.o.eps, 0)
        linear[keys] += rate * m / c1 - grown * self.x[keys]
        z = lasso(linear[keys], self.o.l1 * rate, self.o.l21 * rate)
        return -z / (now + self.o.eps + 2 * self.o.l2 * rate)


def lasso(linear: Floats, l1: float, l21: float) -> Any:
    """Terms brought nearer to 0 by l1, then rows by l21 * sqrt(dim)."""
    z = np.sign(linear) * np.maximum(np.abs(linear) - l1, 0)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    bound = l21 * np.sqrt(linear.shape[1])
    return z * np.where(norm > bound, 1 - bound / np.maximum(norm, 1e-300), 0)
