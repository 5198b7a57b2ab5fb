"""The figures of a run as a table: for a terminal, and in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.measures import DIRECT, Figures, faults

Results = dict[str, dict[str, Figures]]
"""By system, by measure."""
Kept = dict[str, Any]
"""All that is known of a run, as it is written to results/."""

REFERENCE = "nginx2"
"""What ratios are of: the same way, made of the fastest parts there are."""
LINE = 110
Show = Callable[[Results, str, str, str], str]
"""Returns a cell's text: of the results, a system, a measure and a figure."""


def rate(results: Results, name: str, kind: str, figure: str) -> str:
    """A rate, and how many times the reference's it is."""
    value = results[name][kind][figure]
    reference = results.get(REFERENCE, {}).get(kind, {}).get(figure)
    return f"{value:,}" + (f" ({value / reference:.2f})" if reference else "")


def added(figure_of_direct: str) -> Show:
    """Milliseconds more than the engine asked directly took in the same seconds."""

    def show(results: Results, name: str, kind: str, figure: str) -> str:
        figures = results[name][kind]
        if name == DIRECT:
            return f"{figures[figure_of_direct]:.3f}"
        return f"{figures[figure]:+.3f}" if figure in figures else "–"

    return show


def more(results: Results, name: str, kind: str, figure: str) -> str:
    """Milliseconds more than the engine asked directly took in this run."""
    value = results[name][kind][figure]
    direct = results.get(DIRECT, {}).get(kind, {}).get(figure)
    if direct is None or name == DIRECT:
        return f"{value:.1f}"
    return f"{value - direct:+.1f}"


def milliseconds(results: Results, name: str, kind: str, figure: str) -> str:
    value = results[name][kind][figure]
    return "–" if value is None else f"{value:.0f}"


def microseconds(results: Results, name: str, kind: str, figure: str) -> str:
    return f"{results[name][kind][figure]:.0f}"


def each(results: Results, name: str, kind: str, figure: str) -> str:
    """Microseconds of processor for an event: of all processes between client and engine."""
    value = results[name][kind].get(figure)  # the engine itself has none
    return "–" if value is None else f"{value:.2f}"


def percent(results: Results, name: str, kind: str, figure: str) -> str:
    value = results[name][kind].get(figure)
    return "–" if value is None else f"{value:.0%}"


def cores(results: Results, name: str, kind: str, figure: str) -> str:
    value = results[name][kind].get(figure)
    return "–" if value is None else f"{value:.2f}"


def kibibytes(results: Results, name: str, kind: str, figure: str) -> str:
    value = results[name][kind][figure]
    return "–" if name == DIRECT else f"{value / 1024:,.0f}"


@dataclass(frozen=True)
class Row:
    kind: str
    figure: str
    title: str
    show: Show


ROWS = (
    Row("small", "per_second", "small JSON, 32 at once: requests/s", rate),
    Row("streams", "events_per_second", "streams, 32 at once: events/s", rate),
    Row("bursts", "events_per_second", "the same, 16 events a write: events/s", rate),
    Row("streams", "cpu_us_per_event", "streams: processor time, µs an event", each),
    Row("bursts", "cpu_us_per_event", "16 events a write: processor time, µs an event", each),
    Row("probe", "whole_added_ms", "one at a time, no pause: median ms", added("whole_p50_ms")),
    Row("cold", "added_p50_ms", "one every 50 ms: median ms", added("p50_ms")),
    Row("cold", "added_p90_ms", "one every 50 ms: p90 ms", added("p90_ms")),
    Row("cold", "added_p99_ms", "one every 50 ms: p99 ms", added("p99_ms")),
    Row("far", "first_byte_p50_ms", "node 50 ms away: first byte, ms", more),
    Row("paced", "gap_p99_ms", "1,000 paced streams: p99 gap, ms", milliseconds),
    Row("paced", "cpu_us_per_event", "1,000 paced streams: processor time, µs an event", each),
    Row("paced", "machine_busy", "1,000 paced streams: all cores busy", percent),
    Row("crowd", "gap_p99_ms", "5,000 streams of 10 events/s: p99 gap, ms", milliseconds),
    Row("crowd", "front_cores", "5,000 streams: cores of the server", cores),
    Row("crowd", "machine_busy", "5,000 streams: all cores busy", percent),
    Row("paced", "memory_per_stream", "an open stream: KiB", kibibytes),
    Row("nodes", "memory_per_node", "an idle node: KiB of the server", kibibytes),
    Row("nodes", "memory_of_node", "an idle node: KiB of its own", kibibytes),
    Row("growth", "growth", "after many requests: KiB more", kibibytes),
    Row("routing", "idle_us", "choice of 10,000 nodes, idle: µs", microseconds),
    Row("routing", "full_90_us", "choice of 10,000, 90 % full: µs", microseconds),
    Row("routing", "drained_us", "choice of 10,000, out of reach: µs", microseconds),
)


def rows(kept: Kept) -> Iterator[list[str]]:
    """Each measure's title and the cells of all systems, as far as it was measured at all."""
    results: Results = kept["results"]
    for row in ROWS:
        if any(row.figure in measured.get(row.kind, {}) for measured in results.values()):
            yield [row.title, *(cell(kept, name, row) for name in kept["systems"])]


def cell(kept: Kept, name: str, row: Row) -> str:
    figures = kept["results"].get(name, {}).get(row.kind)
    if figures is None:
        return "not measured" if name in kept["problems"] else "–"
    shown = row.show(kept["results"], name, row.kind, row.figure)
    bad = faults(figures)
    return f"{shown} ({bad:,} bad)" if bad else shown


def notes(kept: Kept) -> Iterator[str]:
    """Yield the notes that belong to the figures."""
    reference = kept["systems"].get(REFERENCE)
    if reference:
        yield f"In brackets: the ratio to {reference}."
    yield "+ is over the engine asked directly; bad answers were lost, refused or wrong."
    yield f"{kept['date']}, {kept['machine']}, load before {kept['load before']}, {kept['took']}."
    yield f"{kept['versions']}."
    for name, problem in kept["problems"].items():
        yield f"Not measured: {kept['systems'].get(name, name)}: {problem}."


def table(kept: Kept) -> Table:
    shown = Table(caption="\n".join(notes(kept)), caption_justify="left")
    shown.add_column("")
    for title in kept["systems"].values():
        shown.add_column(title, justify="right")
    for title, *cells in rows(kept):
        shown.add_row(title, *(f"[red]{one}" if "bad)" in one else one for one in cells))
    return shown


def markdown(kept: Kept) -> str:
    """The table, and a list of what has to be known."""
    titles = [f"**{title}**" if name == "fabric" else title
              for name, title in kept["systems"].items()]  # fmt: skip
    lines = [["", *titles], ["---", *("---:" for _ in titles)], *rows(kept)]
    table = "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)
    told = [textwrap.fill(escaped(note), LINE, initial_indent="- ", subsequent_indent="  ",
                          break_on_hyphens=False) for note in notes(kept)]  # fmt: skip
    return f"{table}\n\n" + "\n".join(told) + "\n"


def escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
