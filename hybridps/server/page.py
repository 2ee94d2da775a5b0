"""The status page: one self-contained HTML text of counters; no script, nothing fetched.

Pure: a view in, a string out. Everything that is not a literal of this file is escaped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from hybridps.server.charts import draw
from hybridps.server.history import Chart
from hybridps.server.samples import Sample
from hybridps.verbs.calls import NEVER_MS

REFRESH_S = 3
_KIB = 1024
_MINUTE_S = 60
_WHOLE = 100  # From here on a decimal tells nothing.


@dataclass(frozen=True)
class Facts:
    """What never changes once the store is open."""

    url: str
    data: str
    version: str
    durability: str
    shard: tuple[int, int]
    loop: str
    # Whom a replica follows.
    follows: str | None = None


@dataclass(frozen=True)
class View:
    """All that the page shows."""

    phase: str
    told: str  # why it is not all that it should be
    facts: Facts | None
    uptime_s: float
    connections: int
    inflight_bytes: int
    now: Sample
    before: Sample | None  # rates are taken from here to `now`; None: from the start
    charts: Sequence[Chart] = ()


def render(view: View) -> str:
    """The page."""
    store = view.now.snapshot.store
    body = "\n".join(
        [
            f'<h1>hybridps <span class="{escape(view.phase)}">{escape(view.phase)}</span></h1>',
            f"<p><b>{escape(view.told)}</b></p>" if view.told else "",
            _facts(view),
            _budgets(store),
            _charts(view.charts),
            _rates(view),
            _tables(view.now.snapshot.tables),
        ]
    )
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" '
        f'content="{REFRESH_S}"><meta name="viewport" content="width=device-width">'
        f"<title>hybridps: {escape(view.phase)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n"
        f'<footer>Refreshes every {REFRESH_S} s. <a href="/metrics">/metrics</a> '
        '<a href="/livez">/livez</a> <a href="/readyz">/readyz</a></footer>\n'
        "</body></html>\n"
    )


def _facts(view: View) -> str:
    if view.facts is None:
        return "<p>The store is being opened.</p>"
    facts = view.facts
    pairs = {
        "address": facts.url,
        "data": facts.data,
        "shard": f"{facts.shard[0]} of {facts.shard[1]}",
        "durability": facts.durability,
        "version": facts.version,
        "event loop": facts.loop,
        "up": duration(view.uptime_s),
        "connections": f"{view.connections:,}",
        "in flight": size(view.inflight_bytes),
    }
    if facts.follows is not None:
        behind_ms = view.now.snapshot.store.get("staleness_ms", NEVER_MS)
        behind = "never had all rows" if behind_ms >= NEVER_MS else f"{behind_ms / 1000:.1f} s"
        pairs |= {"replica of": facts.follows, "behind": behind}
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items())
    return f"<dl>{items}</dl>"


def _budgets(store: Mapping[str, int]) -> str:
    bars = [
        _bar("DRAM", store.get("dram_bytes", 0), store.get("dram_limit", 0)),
        _bar("NVMe", store.get("nvme_bytes", 0), store.get("nvme_limit", 0)),
    ]
    if store.get("cold_limit"):
        bars.append(_bar("Cold", store.get("cold_bytes", 0), store["cold_limit"]))
    return f'<section class="bars">{"".join(bars)}</section>'


def _bar(name: str, used: int, limit: int) -> str:
    share = min(used / limit, 1.0) if limit else 0.0
    text = f"{size(used)} of {size(limit)} ({share:.0%})" if limit else size(used)
    return (
        f"<div><b>{escape(name)}</b> {escape(text)}"
        f'<progress value="{share:.4f}" max="1">{share:.0%}</progress></div>'
    )


def _charts(charts: Sequence[Chart]) -> str:
    drawn = "".join(f"<div>{draw(chart)}</div>" for chart in charts)
    early = "<p>Drawn from the tenth second on.</p>"
    body = f'<div class="charts">{drawn}</div>' if drawn else early
    return f"<h2>The last 15 minutes</h2>{body}"


def _rates(view: View) -> str:
    now, before = view.now, view.before
    elapsed = max(now.at - before.at if before else view.uptime_s, 1e-9)
    store, requests = (before.snapshot.store, before.requests) if before else ({}, {})

    def rate(counter: str) -> float:
        return max(now.snapshot.store.get(counter, 0) - store.get(counter, 0), 0) / elapsed

    rows = [
        ("keys looked up", f"{rate('unique_keys'):,.0f}/s"),
        ("cache hit ratio", ratio(rate("cache_hits"), rate("cache_misses"))),
        ("device reads of calls", f"{rate('device_reads'):,.0f}/s"),
        ("device reads in background", f"{rate('background_reads'):,.0f}/s"),
        ("read from device", f"{size(rate('device_bytes_read'))}/s"),
        ("written to device", f"{size(rate('device_bytes_written'))}/s"),
        ("journal", f"{size(rate('journal_bytes'))}/s"),
        ("evictions", f"{rate('evictions'):,.0f}/s"),
    ]
    for method, count in sorted(now.requests.items()):
        calls = max(count - requests.get(method, 0), 0) / elapsed
        rows.append((f"calls of {method}", f"{calls:,.1f}/s ({count:,} in all)"))
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows)
    return f"<h2>Rates over {escape(duration(elapsed))}</h2><table>{cells}</table>"


def _tables(tables: Mapping[str, Mapping[str, int]]) -> str:
    if not tables:
        return "<h2>Tables</h2><p>None yet.</p>"
    head = "".join(f"<th>{escape(title)}</th>" for title in ("table", *_COLUMNS))
    lines = []
    for name, counters in sorted(tables.items()):
        cells = "".join(f"<td>{escape(show(counters))}</td>" for show in _COLUMNS.values())
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return (
        f"<h2>Tables</h2><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def size(size_bytes: float) -> str:
    """1.5 GiB, 12 MiB, 900 B: three digits that a person can compare."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _KIB:
            digits = 0 if unit == "B" or value >= _WHOLE else 1
            return f"{value:.{digits}f} {unit}"
        value /= _KIB
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """3 d 4 h, 5 min 2 s, 1.2 s."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), _MINUTE_S)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def ratio(hits: float, misses: float) -> str:
    """Hits as a share of both, or a dash when nothing was asked."""
    return f"{hits / (hits + misses):.2%}" if hits + misses else "-"


def _count(name: str) -> Callable[[Mapping[str, int]], str]:
    return lambda counters: f"{counters.get(name, 0):,}"


def _bytes(name: str) -> Callable[[Mapping[str, int]], str]:
    return lambda counters: size(counters.get(name, 0))


def _hit_ratio(counters: Mapping[str, int]) -> str:
    return ratio(counters.get("cache_hits", 0), counters.get("cache_misses", 0))


_COLUMNS: dict[str, Callable[[Mapping[str, int]], str]] = {
    "keys": _count("keys"),
    "rows in DRAM": _count("rows_dram"),
    "on NVMe": _count("rows_nvme"),
    "cold": _count("rows_cold"),
    "hit ratio": _hit_ratio,
    "DRAM": _bytes("dram_bytes"),
    "of it index": _bytes("index_bytes"),
    "NVMe": _bytes("nvme_bytes"),
    "cold disk": _bytes("cold_bytes"),
    "evictions": _count("evictions"),
    "duplicates": _count("duplicate_pushes"),
    "corrupt": _count("corrupt_records"),
}

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:1.6rem}
h1 span{font-size:.8rem;padding:.15rem .6rem;border-radius:1rem;color:#fff;vertical-align:middle}
.ready{background:#1a7f37}.starting{background:#9a6700}.draining,.failed{background:#cf222e}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:0}
dt{opacity:.7}dd{margin:0;overflow-wrap:anywhere}
.bars{display:flex;gap:2rem;flex-wrap:wrap;margin-top:1rem}.bars div{flex:1;min-width:16rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:.5rem}
.charts svg{width:100%;height:auto}
progress{width:100%;height:.8rem}
table{border-collapse:collapse;width:100%}
td,th{text-align:right;padding:.2rem .6rem;border-bottom:1px solid #8884}
td:first-child,th:first-child{text-align:left}td{font-variant-numeric:tabular-nums}
footer{margin-top:2rem;opacity:.7;font-size:.85rem}
""".strip()
