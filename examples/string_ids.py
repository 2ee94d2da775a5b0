"""Text columns of a pandas frame as ids: a text is a key everywhere, without a vocabulary.

python examples/string_ids.py URL

The same text is the same key in every client (XXH64 of its UTF-8); a column puts its name before
its texts, so that "red" the colour and "red" the wine are two keys of one table.
"""

import sys

import numpy as np
import pandas as pd

import hybridps as hps


def keys_of(frame: pd.DataFrame) -> np.ndarray:
    """Texts [rows, columns]; a missing value is a text of its own."""
    texts = [frame[name].fillna("?").map(f"{name}={{}}".format) for name in frame.columns]
    return np.stack([column.to_numpy(object) for column in texts], axis=1)


def main(url: str) -> None:
    """Logistic regression over the columns of a frame: one weight a text, trained in the store."""
    frame = pd.DataFrame(
        {
            "colour": ["red", "green", None, "red", "green", "red"] * 50,
            "wine": ["red", "white", "red", "white", None, "white"] * 50,
        }
    )
    bought = (frame["colour"] == "red").to_numpy(np.float32)
    with hps.connect(url) as ps:
        weights = ps.create_table(hps.TableSpec("texts", 1, hps.Adagrad(0.5), hps.Zeros()))
        keys = keys_of(frame)
        for _ in range(20):
            logits = weights.lookup_or_insert(keys).sum(axis=(1, 2))
            slope = (1 / (1 + np.exp(-logits)) - bought) / len(frame)
            gradients = np.repeat(slope[:, None, None], keys.shape[1], 1)
            weights.apply_gradients(keys, gradients.astype(np.float32))
        for text in ("colour=red", "colour=green", "wine=red"):
            print(f"{text}: {weights.lookup(text)[0]:+.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
