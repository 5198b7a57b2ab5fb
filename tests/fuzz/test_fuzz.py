"""Every target of ``make fuzz``, briefly; and what happens when one finds something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz, main
from tests.fuzz.corpus import SEEDS
from tests.fuzz.targets import TARGETS, Target

LEAST = {"answers": 3, "edge": 15, "stranger": 15, "queries": 15, "settings": 20, "meters": 20}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_reader(name: str, tmp_path: Path) -> None:
    least = LEAST.get(name, 40)
    assert fuzz(name, TARGETS[name], seconds=0.0, seed=1, kept=tmp_path, least=least) >= least


def test_every_seed_belongs_to_a_target() -> None:
    assert {seed.name for seed in SEEDS.iterdir()} <= set(TARGETS)


def test_what_was_found_is_kept_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fragile(data: bytes) -> object:
        assert b"[DONE]" not in data, "it broke"
        return len(data) // 10

    monkeypatch.setitem(TARGETS, "fragile", Target(fragile, (b"seed",)))
    words = ["--target", "fragile", "--corpus", str(tmp_path)]
    assert main([*words, "--seconds", "60"]) == 1
    said = capsys.readouterr()
    [found] = (tmp_path / "found").iterdir()
    assert f"again: python -m tests.fuzz --target fragile --file {found}" in said.err
    assert b"[DONE]" in found.read_bytes()
    with pytest.raises(AssertionError, match="it broke"):
        main([*words, "--file", str(found)])
    kept = list((tmp_path / "fragile").iterdir())
    assert kept, "inputs that showed something new are there for the next run"
    assert not any(b"[DONE]" in file.read_bytes() for file in kept)
