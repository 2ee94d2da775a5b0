"""A small vector index that is kept up by what changes in a table: which rows are like that of KEY?

python examples/vector_index.py URL TABLE KEY FILE

The first run copies the table; each later one takes from the servers only what has changed since.
Index and cursor lie in FILE together, so they cannot disagree, however a run ends.
"""

import sys
from pathlib import Path

import numpy as np

import hybridps as hps


class Index:
    """Vectors by key in one matrix, compared by the cosine of their angle; keys that went leave a
    gap.
    """

    def __init__(self, dim: int) -> None:
        self.cursor: str | None = None
        self._places: dict[int, int] = {}
        self._vectors = np.zeros((0, dim), np.float32)

    @classmethod
    def load(cls, path: Path, dim: int) -> "Index":
        """From a file, or a new one."""
        index = cls(dim)
        if path.exists():
            with np.load(path, allow_pickle=False) as file:
                index.cursor = str(file["cursor"])
                index.put(file["keys"], file["vectors"])
        return index

    def save(self, path: Path) -> None:
        """Into a file that is whole whenever it is there."""
        keys = np.array(list(self._places), np.uint64)
        vectors = self._vectors[list(self._places.values())]
        with path.with_suffix(".new").open("wb") as file:
            np.savez(file, keys=keys, vectors=vectors, cursor=np.array(self.cursor))
        path.with_suffix(".new").replace(path)

    def __len__(self) -> int:
        return len(self._places)

    def take(self, change: hps.Change) -> None:
        """Applies a change."""
        if not len(change.keys) and not len(change.removed):
            self._places.clear()
        for key in change.removed.tolist():
            self._places.pop(key, None)
        self.put(change.keys, change.rows)
        self.cursor = change.cursor

    def put(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Sets the vectors of keys."""
        new = [key for key in keys.tolist() if key not in self._places]
        first = len(self._vectors)
        self._places.update(zip(new, range(first, first + len(new)), strict=True))
        gaps = np.zeros((len(new), self._vectors.shape[1]), np.float32)
        self._vectors = np.concatenate([self._vectors, gaps])
        self._vectors[[self._places[key] for key in keys.tolist()]] = vectors

    def like(self, key: int, most: int = 5) -> list[tuple[int, float]]:
        """The keys whose vectors are most like that of a key, with the cosine."""
        keys = np.array(list(self._places), np.uint64)
        vectors = self._vectors[list(self._places.values())]
        lengths = np.linalg.norm(vectors, axis=1)
        own = self._vectors[self._places[key]]
        cosines = vectors @ own / np.maximum(lengths * np.linalg.norm(own), 1e-12)
        best = np.argsort(-cosines, kind="stable")
        return [(int(keys[n]), float(cosines[n])) for n in best if keys[n] != key][:most]


def main(url: str, name: str, key: str, file: str) -> None:
    """Takes what has changed, and tells what is like the key."""
    path, changed = Path(file), 0
    with hps.connect(url) as ps:
        dim = ps.table(name).spec.dim
        index = Index.load(path, dim)
        try:
            for change in ps.changes(index.cursor, [name]):
                index.take(change)
                changed += len(change.keys) + len(change.removed)
        except hps.CursorError as error:
            print(f"begins anew: {error}")
            index = Index(dim)
            for change in ps.changes(None, [name]):
                index.take(change)
        index.save(path)
    print(f"{len(index)} vectors, {changed} changed")
    for other, cosine in index.like(int(key)):
        print(f"key {other}: {cosine:+.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
