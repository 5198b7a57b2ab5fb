"""Runs a test on plain asyncio and on uvloop: nodes on Windows have the one, servers the other."""

from __future__ import annotations

import asyncio
import gc
import inspect
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(story: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Turns an ``async def`` test into two.

    What the loop's exception handler hears, and what is left open, fails it.
    """

    async def told(heard: list[dict[str, Any]], arguments: dict[str, Any]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: heard.append(said))
        await story(**arguments)
        # What closes in the background does so within some turns; what was dropped shows.
        for _ in range(5):
            await asyncio.sleep(0)
        gc.collect()

    def test(loop_name: str, **arguments: Any) -> None:
        heard: list[dict[str, Any]] = []
        # As errors, warnings would be raised where uvloop closes its transports, and closing the
        # loop would then wait for ever.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with asyncio.Runner(debug=True, loop_factory=LOOPS[loop_name]) as runner:
                runner.run(told(heard, arguments))
        assert not heard
        assert not [str(warning.message) for warning in warned]

    parameters = list(inspect.signature(story).parameters.values())
    loop_name = inspect.Parameter("loop_name", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = inspect.Signature([loop_name, *parameters])  # type: ignore[attr-defined]
    test.__name__, test.__doc__ = story.__name__, story.__doc__
    test.__module__, test.__qualname__ = story.__module__, story.__qualname__
    if marks := getattr(story, "pytestmark", None):
        test.pytestmark = marks  # type: ignore[attr-defined]
    both: Callable[..., None] = pytest.mark.parametrize("loop_name", LOOPS)(test)
    return both
