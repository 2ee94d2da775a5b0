"""Plots of the benchmarks as SVG files, where matplotlib is installed; elsewhere a line says so."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def plot_lines(path: Path | None, series: Series, *, title: str, x: str, y: str) -> None:
    """One line with markers a series: name -> (xs, ys)."""
    axes = _axes(path, title, x, y)
    if axes is None or path is None:
        return
    for name, (xs, ys) in series.items():
        axes.plot(xs, ys, marker="o", markersize=3, label=name)
    axes.legend()
    _save(axes, path)


def plot_bars(path: Path | None, values: Mapping[str, Mapping[str, float]], *, title: str,
              y: str) -> None:  # fmt: skip
    """A group of bars for each case: case -> {side: value}."""
    axes = _axes(path, title, "", y)
    if axes is None or path is None:
        return
    sides = list(dict.fromkeys(side for of_case in values.values() for side in of_case))
    width = 0.8 / max(1, len(sides))
    for n, side in enumerate(sides):
        places = [case + n * width for case in range(len(values))]
        axes.bar(places, [of.get(side, 0.0) for of in values.values()], width, label=side)
    middle = (len(sides) - 1) * width / 2
    axes.set_xticks([case + middle for case in range(len(values))], list(values))
    axes.legend()
    _save(axes, path)


def _axes(path: Path | None, title: str, x: str, y: str):  # noqa: ANN202 - matplotlib's
    if path is None:
        return None
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional
    except ImportError:
        print(f"{path} is not drawn: install matplotlib")
        return None
    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, alpha=0.3)
    return axes


def _save(axes, path: Path) -> None:  # noqa: ANN001 - matplotlib's
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(path)
    print(f"plot: {path}", flush=True)
