"""Charts of the status page as inline SVG: no script, nothing fetched, colours of the reader's own
theme. Drawn by `leather`; this file says only what they look like.
"""

from html import escape

import leather

from hybridps.server.history import WINDOW_S, Chart

_WIDTH, _HEIGHT = 420, 220
_MINUTES = WINDOW_S / 60
_TICKS = [-_MINUTES, -_MINUTES * 2 / 3, -_MINUTES / 3, 0]
_COLOURS = ("#2f81f7", "#f0883e")

_FONT = "system-ui,sans-serif"
for _part in ("title", "legend", "axis_title", "tick"):
    setattr(leather.theme, f"{_part}_font_family", _FONT)
for _part in ("title_color", "legend_color", "axis_title_color", "label_color", "zero_color"):
    setattr(leather.theme, _part, "currentColor")
leather.theme.background_color = "none"
leather.theme.tick_color = "#8884"
leather.theme.default_line_width = 1.5
leather.theme.title_font_size = 13
leather.theme.legend_font_size = leather.theme.tick_font_size = 11


def draw(chart: Chart) -> str:
    """An `<svg>` element; a chart without a value yet is a sentence."""
    lines = {name: series for name, series in chart.lines.items() if series}
    if not lines:
        return f"<p>{escape(chart.title)}: no calls yet.</p>"
    drawing = leather.Chart(chart.title)
    drawing.add_x_scale(-_MINUTES, 0)
    drawing.add_x_axis(ticks=_TICKS, tick_formatter=lambda at, *_: f"{at:g} min" if at else "now")
    highest = max(value for series in lines.values() for _, value in series)
    drawing.add_y_scale(0, max(highest, chart.bound or 0) * 1.05 or 1)
    drawing.add_y_axis(tick_formatter=lambda value, *_: short(float(value)))
    for (name, series), colour in zip(lines.items(), _COLOURS, strict=False):
        drawing.add_line(series, name=name, stroke_color=colour)
    if chart.bound is not None:
        ends = [(-_MINUTES, chart.bound), (0, chart.bound)]
        drawing.add_line(ends, name="limit", stroke_color="#cf222e", stroke_dasharray="4")
    svg = str(drawing.to_svg(width=_WIDTH, height=_HEIGHT))
    # Its own opening tag is for a file by itself: of fixed size, and of a namespace.
    tag = f'<svg role="img" aria-label="{escape(chart.title)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    return tag + svg.partition(">")[2]


def short(value: float) -> str:
    """1.2M, 35k, 0.25: few letters beside an axis."""
    for unit, one in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= one:
            return f"{value / one:.3g}{unit}"
    return f"{value:.3g}"
