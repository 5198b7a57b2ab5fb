"""The figures of a run as a table for people."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from benchmarks.measures import Figures, faults
from benchmarks.systems import SYSTEMS

Results = dict[str, dict[str, Figures]]
"""By system, by measure."""

REFERENCE = "nginx2"
"""What ratios are of: the same way, made of the fastest parts there are."""


def rate(results: Results, name: str, kind: str, figure: str) -> str:
    """A rate, and how many times the reference's it is."""
    value = results[name][kind][figure]
    reference = results.get(REFERENCE, {}).get(kind, {}).get(figure)
    return f"{value:,}" + (f" ({value / reference:.2f})" if reference else "")


def added(results: Results, name: str, kind: str, figure: str) -> str:
    """Milliseconds more than the engine asked directly took in the same seconds."""
    figures = results[name][kind]
    return f"{figures['whole_p50_ms']:.3f}" if name == "direct" else f"{figures[figure]:+.3f}"


def more(results: Results, name: str, kind: str, figure: str) -> str:
    """Milliseconds more than the engine asked directly took in this run."""
    value = results[name][kind][figure]
    direct = results.get("direct", {}).get(kind, {}).get(figure)
    if direct is None or name == "direct":
        return f"{value:.1f}"
    return f"{value - direct:+.1f}"


def gap(results: Results, name: str, kind: str, figure: str) -> str:
    """Milliseconds, and how many of the streams were not right."""
    figures = results[name][kind]
    milliseconds = "–" if figures[figure] is None else f"{figures[figure]:.0f}"
    return f"{milliseconds}; {faults(figures)}"


def kibibytes(results: Results, name: str, kind: str, figure: str) -> str:
    value = results[name][kind][figure]
    return "" if name == "direct" else f"{value / 1024:,.0f}"


COLUMNS: list[tuple[str, str, str, Callable[[Results, str, str, str], str]]] = [
    ("small", "per_second", "small JSON, 32 at once\nrequests/s (×)", rate),
    ("streams", "events_per_second", "streams, 32 at once\nevents/s (×)", rate),
    ("bursts", "events_per_second", "16 events a write\nevents/s (×)", rate),
    ("probe", "whole_added_ms", "one at a time\np50, ms", added),
    ("growth", "growth", "KiB more after\nmany requests", kibibytes),
    ("paced", "gap_p99_ms", "1,000 paced streams\np99 gap, ms; bad", gap),
    ("paced", "memory_per_stream", "KiB a\nstream", kibibytes),
    ("nodes", "memory_per_node", "KiB an\nidle node", kibibytes),
    ("far", "first_byte_p50_ms", "50 ms away\nfirst byte, ms", more),
]


def table(results: Results, kinds: list[str]) -> Table:
    shown = Table(caption=f"× is of {SYSTEMS[REFERENCE].name}; + is over the engine asked directly")
    shown.add_column("")
    columns = [column for column in COLUMNS if column[0] in kinds]
    for _, _, title, _ in columns:
        shown.add_column(title, justify="right")
    for name, measured in results.items():
        cells = []
        for kind, figure, _, show in columns:
            cell = show(results, name, kind, figure) if kind in measured else "–"
            if bad := faults(measured.get(kind, {})):
                cell = f"[red]{cell}\n{bad} bad"
            cells.append(cell)
        shown.add_row(SYSTEMS[name].name, *cells)
    return shown
