"""The documents: short lines, links that lead somewhere, and files that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.packaging.checkout import PACKAGES, ROOT, files

MAX_LINE = 120
DOCUMENTS = sorted(files(".md"))
LINK = re.compile(r"(?<!!)\[[^]]*\]\((?P<target>[^)\s]+)\)")
FILE = re.compile(r"`(?P<path>[\w./-]+\.(?:py|sh|sql|md|toml|yml|yaml))`")
FENCE = re.compile(r"^\s*```.*?^\s*```", re.MULTILINE | re.DOTALL)
NOT_HERE = re.compile(r"/.*|fabric\.toml|(docker/secrets/)?fabric-\w+\.toml|(sql/)?NNNN_.*")
"""Files that users have, not the checkout, and placeholders."""


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text("utf-8"))


@cache
def anchors(document: Path) -> frozenset[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: list[str] = []
    for title in re.findall(r"^#+ +(.*)$", prose(document), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = sum(re.sub(r"-\d+$", "", one) == anchor for one in found)
        found.append(f"{anchor}-{count}" if count else anchor)
    return frozenset(found)


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """Yield each relative link as the file that it means and its anchor."""
    for match in LINK.finditer(prose(document)):
        target, _, anchor = match["target"].partition("#")
        if not re.match(r"[a-z]+:", target):
            yield (document.parent / target).resolve() if target else document, anchor


@every_document
def test_lines_are_short(document: Path) -> None:
    """Rows of tables may be longer: Markdown has no way to break them."""
    long = [
        f"{number}: {len(line)}"
        for number, line in enumerate(document.read_text("utf-8").splitlines(), 1)
        if len(line) > MAX_LINE and not line.lstrip().startswith("|")
    ]
    assert not long


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in links(document):
        assert target.exists(), f"{target} does not exist"
        if anchor:
            assert target.suffix == ".md", f"an anchor in {target}"
            assert anchor in anchors(target), f"#{anchor} is no heading of {name(target)}"


@every_document
def test_files_that_a_document_names_exist(document: Path) -> None:
    """A path is relative to the checkout, one of its packages, or the document."""
    roots = [ROOT, document.parent, *(ROOT / package for package in PACKAGES)]
    if document == ROOT / "CHANGELOG.md":  # tells of the past
        return
    for match in FILE.finditer(prose(document)):
        path = match["path"]
        assert NOT_HERE.fullmatch(path) or any((root / path).exists() for root in roots), (
            f"{path} does not exist"
        )
