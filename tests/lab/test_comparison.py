"""The comparison's picture and table, from fixed figures."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.picture import MARGIN, WIDTH, picture
from benchmarks.report import BEGIN, END, filled
from benchmarks.systems import COMPARED, SYSTEMS
from benchmarks.table import Kept, markdown
from tests.packaging.checkout import ROOT

SVG = "{http://www.w3.org/2000/svg}"
GOOD = {"refused": 0, "lost": 0, "wrong": 0, "problem": None}


SYSTEM_TITLES = [SYSTEMS[name].name for name in COMPARED[1:]]


def small(per_second: int) -> dict[str, object]:
    return {"per_second": per_second, **GOOD}


def cold(*added: float) -> dict[str, object]:
    named = zip(("p50", "p90", "p99"), added, strict=True)
    return {"p50_ms": 1.0, **{f"added_{name}_ms": value for name, value in named}, **GOOD}


KEPT: Kept = {
    "date": "2026-11-29 12:00 UTC",
    "machine": "2 cores of Example CPU, Linux 6.18",
    "load before": "0.1 (1 min), 0.2 (15 min)",
    "took": "5.5 minutes",
    "versions": "Python 3.11.7, nginx 1.22.1",
    "extent": {"rounds": 2},
    "systems": {
        "direct": "engine asked directly",
        "fabric": "Fabric",
        "nginx2": "nginx, 2 hops, TLS between",
        "litellm": "LiteLLM proxy",
    },
    "results": {
        "direct": {
            "small": small(100_000),
            "cold": {"p50_ms": 0.2, "p90_ms": 0.3, "p99_ms": 0.4, **GOOD},
            "paced": {"gap_p99_ms": 12.4, "memory_per_stream": 0, **GOOD},
        },
        "fabric": {
            "small": small(20_000),
            "cold": cold(0.5, 0.75, 1.0),
            "paced": {"gap_p99_ms": 40.0, "memory_per_stream": 20 * 1024, **GOOD},
        },
        "nginx2": {
            "small": small(40_000),
            "cold": cold(-0.01, 0.1, 0.25),
            "paced": {"gap_p99_ms": None, "memory_per_stream": 0, **GOOD, "lost": 1000},
        },
    },
    "problems": {"litellm": "litellm 1.0 could not be installed; the reason is above"},
}


def changed(name: str, kind: str, **figures: object) -> Kept:
    kept = copy.deepcopy(KEPT)
    kept["results"][name][kind].update(figures)
    return kept


def elements(kept: Kept, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(picture(kept)).iter(SVG + tag))


def texts(kept: Kept) -> list[str]:
    return [element.text or "" for element in elements(kept, "text")]


def bars(kept: Kept) -> list[tuple[str, float]]:
    """The kind and the length of each bar, from top to bottom."""
    found = [(one.get("class", ""), float(one.get("width", "0"))) for one in elements(kept, "rect")]
    return [bar for bar in found if bar[0] != "ground"]


# ── the picture ───────────────────────────────────────────────────────────────────────────────


def test_bars_are_as_long_as_their_figures() -> None:
    (first, fabric), (second, nginx), (third, slow), (fourth, fast) = bars(KEPT)
    assert (first, second, third, fourth) == ("own", "bar", "own", "bar")
    assert fabric == pytest.approx(nginx / 2)
    # The longest line, to a p99 of 1 ms, is as long as the longest bar; a median of less than
    # nothing still shows where its row is.
    assert slow == pytest.approx(nginx / 2)
    assert fast == 2


def test_a_picture_has_the_figures_the_date_and_the_machine() -> None:
    shown = texts(KEPT)
    assert "20,000" in shown
    assert "0.50 ms; p90 0.75, p99 1.00" in shown
    assert "0.00 ms; p90 0.10, p99 0.25" in shown
    whole = " ".join(shown)
    assert "2026-11-29 12:00 UTC, 2 cores of Example CPU, Linux 6.18." in whole
    assert "The engine asked directly: 100,000 requests a second, 0.20 ms (p99 0.40)." in whole


def test_a_system_that_could_not_be_installed_says_so_in_each_panel() -> None:
    said = [text for text in texts(KEPT) if "litellm 1.0 could not be installed" in text]
    assert len(said) == 2


def test_wrong_answers_are_no_bar() -> None:
    kept = changed("nginx2", "small", wrong=3)
    assert "3 answers were lost, refused or wrong" in texts(kept)
    assert "40,000" not in texts(kept)
    assert len(bars(kept)) == len(bars(KEPT)) - 1


def test_a_run_without_these_measures_makes_a_picture() -> None:
    kept = {**KEPT, "results": {}, "problems": {}}
    assert texts(kept).count("not measured") == 6
    assert bars(kept) == []


def test_every_text_is_legible_and_within_the_picture() -> None:
    svg = picture(KEPT)
    sizes = [float(size) for size in re.findall(r"font-size:\s*([\d.]+)px", svg)]
    assert sizes
    assert min(sizes) >= 12
    height = float(ElementTree.fromstring(svg).get("height", "0"))
    for text in elements(KEPT, "text"):
        x, y = float(text.get("x", "")), float(text.get("y", ""))
        # 7.5 px is a wide letter in 13 px; headings are short.
        assert 0 < x < x + 7.5 * 0.85 * len(text.text or "") <= WIDTH
        assert 0 < y < height
    lefts = [float(bar.get("x", "")) for bar in elements(KEPT, "rect") if bar.get("class") == "bar"]
    for label in SYSTEM_TITLES:
        assert MARGIN + 7.5 * len(label) <= min(lefts), f"{label!r} runs into its bar"


def test_each_colour_of_the_light_picture_has_one_for_the_dark() -> None:
    light, dark = picture(KEPT).split("@media (prefers-color-scheme: dark)")
    coloured = r"([.\w]+) \{[^}]*?(?:fill|stroke): #"
    assert set(re.findall(coloured, light)) == set(re.findall(coloured, dark))
    used = set(re.findall(r'class="(\w+)"', dark))
    assert used <= set(re.findall(r"\.(\w+) \{", light))


def test_names_from_elsewhere_are_escaped() -> None:
    kept = {**KEPT, "machine": "2 cores of <script>&", "systems": {"fabric": "<b>", "direct": "&"}}
    assert any("<script>&" in text for text in texts(kept))
    assert "<b>" in texts(kept)


# ── the table ─────────────────────────────────────────────────────────────────────────────────


def test_the_table_has_a_row_for_each_measure_and_a_column_for_each_system() -> None:
    table, _, notes = markdown(KEPT).partition("\n\n")
    assert table.splitlines() == [
        "|  | engine asked directly | **Fabric** | nginx, 2 hops, TLS between | LiteLLM proxy |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| small JSON, 32 at once: requests/s"
        " | 100,000 (2.50) | 20,000 (0.50) | 40,000 (1.00) | not measured |",
        "| one every 50 ms: median ms | 0.200 | +0.500 | -0.010 | not measured |",
        "| one every 50 ms: p90 ms | 0.300 | +0.750 | +0.100 | not measured |",
        "| one every 50 ms: p99 ms | 0.400 | +1.000 | +0.250 | not measured |",
        "| 1,000 paced streams: p99 gap, ms | 12 | 40 | – (1,000 bad) | not measured |",
        "| an open stream: KiB | – | 20 | 0 (1,000 bad) | not measured |",
    ]
    assert "- Not measured: LiteLLM proxy: litellm 1.0 could not be installed" in notes


def test_a_table_takes_the_place_of_the_one_before() -> None:
    page = f"# Title\n\n{BEGIN}\n| old |\n\n{END}\nafter\n"
    once = filled(page, "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n\n{END}\nafter\n"
    assert filled(once, "| new |\n") == once
    with pytest.raises(ValueError, match="figures"):
        filled("# Title\n", "| new |\n")


def test_the_command_writes_both_from_a_file(tmp_path: Path) -> None:
    figures, svg, page = (tmp_path / name for name in ("figures.json", "a.svg", "page.md"))
    figures.write_text(json.dumps(KEPT))
    page.write_text(report.PAGE.read_text("utf-8"), "utf-8")
    command = [sys.executable, "-m", "benchmarks.report", figures, "--svg", svg, "--page", page]
    subprocess.run(command, cwd=ROOT, check=True)
    assert svg.read_text("utf-8") == picture(KEPT)
    written = page.read_text("utf-8")
    assert f"](a.svg)\n\n{markdown(KEPT)}" in written
    assert all(len(line) <= 120 for line in written.splitlines() if not line.startswith("|"))
