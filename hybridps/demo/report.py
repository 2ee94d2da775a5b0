"""The closing tables: what was measured, one line a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from hybridps.demo.accuracy import Accuracy
    from hybridps.demo.scale import Scale

MIB = 1 << 20
Line: TypeAlias = tuple[str, ...]


def accuracy_table(result: Accuracy) -> str:
    """Part one."""
    title = (
        f"{result.data}, {result.model}: {result.samples:,} samples of {result.columns} columns, "
        f"{result.rows:,} ids"
    )
    speed = result.samples_s_server / result.samples_s_torch
    lines = [
        ("", "plain torch", "hybridps server", ""),
        ("AUC", f"{result.auc_torch:.5f}", f"{result.auc_server:.5f}",
         f"difference {abs(result.auc_server - result.auc_torch):.1e}"),
        ("samples/s", f"{result.samples_s_torch:,.0f}", f"{result.samples_s_server:,.0f}",
         f"{speed:.2f}x"),
        ("rows in DRAM", f"{result.rows:,}", f"{result.rows_dram:,}",
         f"{result.rows_dram / max(1, result.rows):.0%}"),
        ("DRAM of the store", "", mib(result.dram_bytes), f"limit {mib(result.dram_limit)}"),
        ("on the device", "", mib(result.nvme_bytes),
         f"{result.evictions:,} evictions, {result.device_reads:,} reads"),
    ]  # fmt: skip
    return table(title, lines)


def scale_table(result: Scale) -> str:
    """Part two."""
    full, tiered, asked = result.full, result.tiered, result.queries
    title = f"planted log, {result.model}: {result.ids:,} ids, {result.samples:,} samples"
    lines = [
        ("", "all in DRAM", "tiered", ""),
        ("rows in DRAM", f"{result.ids:,}", f"{result.rows_dram:,}",
         f"{result.rows_dram / max(1, result.ids):.0%}"),
        ("rows on the device only", "0", f"{result.rows_nvme:,}", mib(result.nvme_bytes)),
        ("DRAM used", mib(full.dram_bytes), mib(tiered.dram_bytes),
         f"{tiered.dram_bytes / max(1, full.dram_bytes):.0%}"),
        ("of that, index", mib(full.index_bytes), mib(tiered.index_bytes), ""),
        ("server's resident set", mib(full.rss_bytes), mib(tiered.rss_bytes), ""),
        ("training samples/s", f"{full.samples_s:,.0f}", f"{tiered.samples_s:,.0f}",
         f"{result.ratio:.2f}x"),
        ("AUC", f"{full.auc:.5f}", f"{tiered.auc:.5f}", f"best possible {result.bayes_auc:.5f}"),
        ("hit ratio", "", f"{result.hit_ratio:.1%}", ""),
        ("device reads", "", f"{result.device_reads:,}",
         f"and {result.background_reads:,} by look-ahead, compaction"),
        ("queries/s while training", "", f"{asked.queries_s:,.0f}",
         f"{asked.ids_per_query} ids each"),
        ("query latency", "", f"{asked.p50_ms:.1f} ms", f"p99 {asked.p99_ms:.1f} ms"),
        ("training meanwhile", "", f"{result.samples_s_while_queried:,.0f}", "samples/s"),
    ]  # fmt: skip
    return table(title, lines)


def table(title: str, lines: Sequence[Line]) -> str:
    """Lines under a title: the first column to the left, figures to the right, remarks left."""
    widths = [max(len(line[c]) for line in lines) for c in range(4)]
    rule = "-" * max(len(title), sum(widths) + 6)
    body = [
        "  ".join([name.ljust(widths[0]), one.rjust(widths[1]), two.rjust(widths[2]), remark])
        for name, one, two, remark in lines
    ]
    return "\n".join(["", title, rule, *(line.rstrip() for line in body), rule])


def mib(count: int) -> str:
    """Bytes for people."""
    return f"{count / MIB:,.1f} MiB"
