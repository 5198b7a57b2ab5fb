"""The figures of a run as a picture: requests a second and added latency, as one SVG.

It is written by hand, in a viewer's own fonts, no text below 12 px; and it has a ground of its own
with colours for light and dark, so that it can be read wherever it is shown.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from xml.sax.saxutils import escape

from benchmarks.measures import DIRECT, Figures, faults
from benchmarks.table import Kept

WIDTH = 720
MARGIN = 24
LABELS = 196
"""Width of the systems' names."""
VALUES = 190
"""Room at the right for the figures at the end of a bar."""
BARS = WIDTH - 2 * MARGIN - LABELS - VALUES
ROW = 28
BAR = 16
LINE_LETTERS = 104
"""Letters of a line in the smallest size."""

STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
           font-size: 13px; fill: #1f2328; }
    .title { font-size: 18px; font-weight: 600; }
    .panel { font-size: 14px; font-weight: 600; }
    .note { font-size: 12px; fill: #59636e; }
    .ground { fill: #ffffff; stroke: #d1d9e0; }
    .bar { fill: #8c959f; }
    .own { fill: #0969da; }
    .tail { stroke: #59636e; stroke-width: 2; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .note { fill: #9198a1; }
      .ground { fill: #0d1117; stroke: #3d444d; }
      .bar { fill: #6e7681; }
      .own { fill: #4493f8; }
      .tail { stroke: #9198a1; }
    }
"""


class _Drawing:
    """Puts elements one below the other."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.y = MARGIN

    def line(self, text: str, kind: str, height: int) -> None:
        self.y += height
        self.text(MARGIN, text, kind)

    def text(self, x: float, text: str, kind: str = "") -> None:
        marked = f' class="{kind}"' if kind else ""
        self.elements.append(f'<text x="{x:g}" y="{self.y:g}"{marked}>{escape(text)}</text>')

    def bar(self, label: str, value: float, most: float, shown: str, *, own: bool,
            tail: float | None = None) -> None:  # fmt: skip
        """Draw a system's bar, and a line from its end to ``tail``."""
        self.y += ROW
        left, middle = MARGIN + LABELS, self.y - 5
        scale = BARS / most if most else 0.0
        length = max(value * scale, 2)
        end = max(length, (tail or 0) * scale)
        self.text(MARGIN, label)
        self.elements.append(
            f'<rect class="{"own" if own else "bar"}" x="{left}" y="{middle - BAR / 2:g}"'
            f' width="{length:.1f}" height="{BAR}" rx="2"/>'
        )
        if end > length:
            self.elements.append(
                f'<path class="tail" d="M{left + length:.1f} {middle}H{left + end:.1f}'
                f'M{left + end:.1f} {middle - 5}v10" fill="none"/>'
            )
        self.text(left + end + 8, shown)

    def missing(self, label: str, why: str) -> None:
        self.y += ROW
        self.text(MARGIN, label)
        self.text(MARGIN + LABELS, why, "note")


def picture(kept: Kept) -> str:
    """Return the SVG of a run's figures."""
    drawing = _Drawing()
    drawing.line("Fabric beside other systems", "title", 8)
    drawing.line(
        "Small JSON requests; client, systems and mock engine share one machine.", "note", 22
    )
    _requests(drawing, kept)
    _latency(drawing, kept)
    drawing.y += 8
    for note in _notes(kept):
        for line in textwrap.wrap(note, LINE_LETTERS):
            drawing.line(line, "note", 18)
    height = drawing.y + MARGIN
    ground = f'x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"'
    body = "\n".join(f"  {element}" for element in drawing.elements)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"  <title>{escape(sentence(kept))}</title>\n"
        f"  <style>{STYLE}  </style>\n"
        f'  <rect class="ground" {ground}/>\n'
        f"{body}\n</svg>\n"
    )


def _requests(drawing: _Drawing, kept: Kept) -> None:
    drawing.line("Requests a second, 32 at once (more is better)", "panel", 34)
    found = {name: figures["per_second"] for name, figures in _measured(kept, "small")}
    for name, title in _systems(kept):
        if name in found:
            value = found[name]
            drawing.bar(title, value, max(found.values()), f"{value:,}", own=name == "fabric")
        else:
            drawing.missing(title, _why_not(kept, name, "small"))


def _latency(drawing: _Drawing, kept: Kept) -> None:
    title = "Added latency, one request every 50 ms: median, line to p99 (less is better)"
    drawing.line(title, "panel", 40)
    found = {
        name: [max(figures[f"added_{quantile}_ms"], 0) for quantile in ("p50", "p90", "p99")]
        for name, figures in _measured(kept, "cold")
        if "added_p50_ms" in figures
    }
    most = max((max(three) for three in found.values()), default=0)
    for name, title in _systems(kept):
        if name in found:
            median, p90, p99 = found[name]
            shown = f"{_ms(median)} ms; p90 {_ms(p90)}, p99 {_ms(p99)}"
            drawing.bar(title, median, most, shown, own=name == "fabric", tail=p99)
        else:
            drawing.missing(title, _why_not(kept, name, "cold"))


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _systems(kept: Kept) -> Iterator[tuple[str, str]]:
    """The systems between a client and the engine, by name and title."""
    return ((name, title) for name, title in kept["systems"].items() if name != DIRECT)


def _measured(kept: Kept, kind: str) -> Iterator[tuple[str, Figures]]:
    """The systems' figures of a measure in which nothing went wrong."""
    for name, _ in _systems(kept):
        figures = kept["results"].get(name, {}).get(kind)
        if figures and not faults(figures):
            yield name, figures


def _why_not(kept: Kept, name: str, kind: str) -> str:
    if bad := faults(kept["results"].get(name, {}).get(kind, {})):
        return f"{bad:,} answers were lost, refused or wrong"
    if problem := kept["problems"].get(name):
        return textwrap.shorten(f"not measured: {problem}", LINE_LETTERS - 30, placeholder=" …")
    return "not measured"


def _notes(kept: Kept) -> Iterator[str]:
    direct = kept["results"].get(DIRECT, {})
    if "small" in direct and "cold" in direct:
        yield (
            f"The engine asked directly: {direct['small']['per_second']:,} requests a second,"
            f" {_ms(direct['cold']['p50_ms'])} ms (p99 {_ms(direct['cold']['p99_ms'])})."
        )
    yield f"{kept['date']}, {kept['machine']}. {kept['versions']}."


def sentence(kept: Kept) -> str:
    """Return the picture's figures as a sentence, for those who do not see it."""
    parts = [
        f"{kept['systems'][name].partition(',')[0]} {figures['per_second']:,}"
        for name, figures in _measured(kept, "small")
    ]
    return f"Small requests a second: {', '.join(parts) or 'not measured'}."
