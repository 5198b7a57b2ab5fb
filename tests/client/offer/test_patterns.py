"""The owner's patterns: which of them decides for which model."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fabric_client.offer.patterns import MAX_PATTERNS, Offer, PatternError


def offered(patterns: list[str] | None, *names: str) -> list[str]:
    offer = Offer(patterns)
    return [name for name in names if not offer.reason_against(name)]


NAMES = ("llama3:latest", "llama3:70b", "llama3-private:latest", "Qwen/Qwen3-8B")


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (None, NAMES),
        ([], ()),
        (["*"], NAMES),
        (["llama3"], ("llama3:latest",)),
        (["llama3:latest"], ("llama3:latest",)),
        (["LLAMA3"], ("llama3:latest",)),
        (["llama3*", "!*-private"], ("llama3:latest", "llama3:70b")),
        (["!*-private", "llama3*"], ("llama3:latest", "llama3:70b", "llama3-private:latest")),
        (["!*-private"], ("llama3:latest", "llama3:70b", "Qwen/Qwen3-8B")),
        (["*", "!llama3"], ("llama3-private:latest", "Qwen/Qwen3-8B")),
        (["*", "!llama3", "llama3:70b"], NAMES[1:]),
        (["*", "!llama3:latest"], NAMES[1:]),
        (["!qwen3*"], NAMES[:3]),
        (["qwen3*"], ()),
        (["qwen/*"], ("Qwen/Qwen3-8B",)),
        (["llama?:7?b"], ("llama3:70b",)),
        (["[lq]*", "![!l]*"], NAMES[:3]),
        (["ll[a-m]ma3"], ("llama3:latest",)),
        ([r"llam\a3"], ("llama3:latest",)),
        ([" llama3 ", "! *private "], ("llama3:latest",)),
        (["gpt*"], ()),
    ],
)  # fmt: skip
def test_the_last_pattern_that_matches_decides(
    patterns: list[str] | None, wanted: tuple[str, ...]
) -> None:
    assert offered(patterns, *NAMES) == list(wanted)


def test_a_private_fine_tune_is_held_back_under_each_of_its_tags() -> None:
    names = ("llama3-private:8b", "me/llama3-private", "hf.co/me/llama3-private:Q4", "A-PRIVATE")
    assert offered(["*", "!*-private"], *names) == []


def test_a_name_without_a_tag_is_the_latest() -> None:
    assert offered(["qwen:latest"], "qwen", "qwen:7b") == ["qwen"]


def test_spellings_of_one_letter_are_one() -> None:
    composed, decomposed = "mod\u00e8le", "mode\u0300le"
    assert offered([f"!{composed}"], decomposed) == []


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "is empty"), ("!", "is empty"), ("  ", "is empty"), ("!!a", "two '!'"),
        ("[ab", "not closed"), ("[", "not closed"), ("[]", "not closed"), ("a\\", "ends with"),
        ("[z-a]", "backwards"), ("a,b", "comma"), ("{a,b}", "comma"), ("a\n", ""),
        ("a" * 300, "256"), ("a\x1b[2J", "printable"),
    ],
)  # fmt: skip
def test_a_wrong_pattern_is_named_with_its_remedy(pattern: str, said: str) -> None:
    if pattern == "a\n":
        Offer([pattern])  # space around it means nothing
        return
    with pytest.raises(PatternError, match=r"the pattern '.*' .*: |must have") as caught:
        Offer(["ok", pattern])
    assert said in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_too_many_patterns_are_refused() -> None:
    with pytest.raises(PatternError, match="more than"):
        Offer(["a"] * (MAX_PATTERNS + 1))


@given(some.text("ab*?", min_size=1, max_size=12), some.text("ab", max_size=12))
def test_a_pattern_matches_what_a_shell_s_would(glob: str, name: str) -> None:
    # A name without a tag is the same as with :latest, which only a pattern that can match it sees.
    expected = fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(f"{name}:latest", glob)
    assert bool(offered([glob], name)) is expected


@settings(deadline=2000)
@given(some.integers(1, 120))
def test_many_stars_are_quick(stars: int) -> None:
    assert offered(["*a" * stars + "b"], "a" * 4000) == []


@given(some.lists(some.text("!ab*[]\\?", max_size=5), max_size=4), some.text("ab", min_size=1))
def test_a_model_that_the_last_pattern_excludes_is_never_offered(
    patterns: list[str], name: str
) -> None:
    try:
        Offer(patterns)
    except PatternError:
        return
    assert offered([*patterns, f"!{name}"], name, f"{name}:latest", f"x/{name}:7b") == []
