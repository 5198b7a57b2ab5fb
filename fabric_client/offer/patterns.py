"""The owner's patterns of the models that are offered.

    llama3*        offers what begins with llama3
    !*-private     holds back what ends with -private

Patterns apply in their order, and the last one that matches a model decides, as in a gitignore
file.  ``*`` stands for any characters, ``?`` for one, ``[abc]`` and ``[!abc]`` for one of a set;
upper and lower case are the same.  A list that has only ``!`` patterns offers everything else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

MAX_PATTERNS = 256
MAX_LENGTH = 256


class PatternError(ValueError):
    """The text is no pattern; ``str()`` says which, why, and what to do."""


class _Pattern(NamedTuple):
    text: str
    excludes: bool
    glob: re.Pattern[str]


class Offer:
    """The owner's choice.  Raises ``PatternError`` for a pattern that is wrong."""

    def __init__(self, patterns: Iterable[str] | None = None) -> None:
        """Offer everything without ``patterns``; an empty list offers nothing."""
        self.patterns = None if patterns is None else tuple(patterns)
        if len(self.patterns or ()) > MAX_PATTERNS:
            raise PatternError(f"there are more than {MAX_PATTERNS} patterns: join some with '*'.")
        self._parsed = [_parse(text) for text in self.patterns or ()]
        self._otherwise = all(one.excludes for one in self._parsed) and self.patterns != ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Offer) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __str__(self) -> str:
        if self.patterns is None:
            return "everything"
        return ", ".join(self.patterns) or "nothing (the list is empty)"

    def reason_against(self, *names: str) -> str:
        """Return why a model with these names is held back; empty if it is offered."""
        offered, last = self._otherwise, ""
        for one in self._parsed:
            if any(one.glob.fullmatch(form) for form in _forms(names, wide=one.excludes)):
                offered, last = not one.excludes, one.text
        if offered:
            return ""
        return f"the pattern '{last}' holds it back" if last else "no pattern in 'models' matches"


EVERYTHING = Offer()


def other_spelling(name: str) -> str:
    """Add or remove ``:latest``, which Ollama's clients leave out; a name with a tag stays."""
    if name.endswith(":latest"):
        return name.removesuffix(":latest")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _forms(names: Iterable[str], *, wide: bool) -> set[str]:
    """Return the spellings of a model that a pattern is compared with.

    One that excludes is compared with more (``wide``), without the tag and without what comes
    before the last slash: in doubt a model is held back.
    """
    found = set()
    for name in names:
        plain = unicodedata.normalize("NFC", name.replace("\\", "/"))
        forms = [plain, other_spelling(plain)]
        if wide:
            folder, slash, last = plain.rpartition("/")
            bare = last.partition(":")[0]
            forms += [last, bare, folder + slash + bare]
        found.update(forms)
    return found


def _parse(text: str) -> _Pattern:
    pattern = text.strip()
    excludes = pattern.startswith("!")
    glob = pattern.removeprefix("!").strip()

    def wrong(why: str) -> PatternError:
        return PatternError(f"the pattern '{ascii(text)[1:-1]}' {why}")

    if not glob:
        raise wrong("is empty: write a name, '*' for all, or remove it.")
    if len(glob) > MAX_LENGTH or not glob.isprintable():
        raise wrong(f"must have 1 to {MAX_LENGTH} printable characters: shorten it with '*'.")
    if glob.startswith("!"):
        raise wrong("has two '!' at its beginning: write one.")
    if "," in glob or "{" in glob or "}" in glob:
        raise wrong("has a comma or braces: write a pattern for each alternative.")
    try:
        compiled = re.compile(_expression(unicodedata.normalize("NFC", glob)), re.IGNORECASE)
    except ValueError as error:
        raise wrong(str(error)) from None
    except re.error:
        raise wrong("has a range that runs backwards: write it like [a-z].") from None
    return _Pattern(pattern, excludes, compiled)


def _expression(glob: str) -> str:
    """Translate to a regular expression that needs no backtracking over earlier stars."""
    parts, at = [""], 0
    while at < len(glob):
        one = glob[at]
        at += 1
        if one == "*":
            parts.append("")
        elif one == "?":
            parts[-1] += "."
        elif one == "[":
            end = glob.find("]", at + 1 + (glob[at : at + 1] in ("!", "^")))
            if end < 0:
                raise ValueError("has a '[' that is not closed: add ']', or write '\\['.")
            parts[-1] += _set(glob[at:end])
            at = end + 1
        elif one == "\\":
            if at == len(glob):
                raise ValueError("ends with a '\\': write '\\\\', or remove it.")
            parts[-1] += re.escape(glob[at])
            at += 1
        else:
            parts[-1] += re.escape(one)
    first, *middle, last = parts if len(parts) > 1 else (parts[0], None)
    if last is None:
        return first
    inner = "".join(f"(?>.*?{one})" for one in middle if one)
    return f"{first}{inner}.*{last}"


def _set(inside: str) -> str:
    negated = inside[0] in "!^"
    chosen = re.sub(r"([\\\[\]&~|^])", r"\\\1", inside[1:] if negated else inside)
    return f"[{'^' if negated else ''}{chosen}]"
