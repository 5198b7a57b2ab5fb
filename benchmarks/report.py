"""Makes the picture and the table of a run from its file of figures, and a page that shows both.

    python -m benchmarks.report benchmarks/results/DATE.json
    python -m benchmarks.report FIGURES.json --svg docs/comparison.svg --page docs/comparison.md

Both take the place of what is between two marks on the page.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks.picture import picture, sentence
from benchmarks.processes import REPOSITORY
from benchmarks.table import Kept, markdown

PICTURE = REPOSITORY / "docs" / "comparison.svg"
PAGE = REPOSITORY / "docs" / "comparison.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def filled(page: str, figures: str) -> str:
    """Return the page with other figures; ValueError if it lacks the marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN.strip()} with {END.strip()} after it")
    return f"{before}{begin}\n{figures}\n{end}{after}"


def write(kept: Kept, svg: Path = PICTURE, page: Path = PAGE) -> None:
    shown = f"![{sentence(kept)}]({os.path.relpath(svg, page.parent)})\n\n{markdown(kept)}"
    text = filled(page.read_text("utf-8"), shown)
    svg.write_text(picture(kept), "utf-8")
    page.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="The picture and the table of a run.")
    parser.add_argument("figures", type=Path, help="as --save of benchmarks.run writes them")
    parser.add_argument("--svg", type=Path, default=PICTURE, help="the picture to write")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to put them into")
    given = parser.parse_args()
    write(json.loads(given.figures.read_text("utf-8")), given.svg, given.page)


if __name__ == "__main__":
    main()
