"""One minute of ``make soak``, which runs for ten."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import run

SEED = 20261121


async def test_whatever_breaks_each_answer_is_whole_or_an_error_that_its_user_can_tell(
    tmp_path: Path,
) -> None:
    print(await run(tmp_path, seconds=60.0, seed=SEED, streams=60))
