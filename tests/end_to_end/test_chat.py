"""``fabric-client chat`` in a pipe and in a terminal, against a real server and node."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

import fcntl
import pty
import termios

CHAT = [sys.executable, "-m", "fabric_client", "chat"]
HOSTILE = "\x1b[2Jred\x1b]0;title\x07 \u202e end"
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
async def fabric(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        await fabric.join(engine.url, slots=4)
        yield fabric


def environ(fabric: Fabric, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")}
    trusted = str(fabric.app.tls.certificates.ca)
    given = {"FABRIC_API_KEY": fabric.key, "FABRIC_URL": fabric.public, "FABRIC_CA": trusted}
    return {**kept, **given, "TERM": "dumb", **more}


async def piped(
    fabric: Fabric, *flags: str, prompt: str = "Hi", **more: str
) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *CHAT,
        *flags,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ(fabric, **more),
    )
    async with asyncio.timeout(30):
        out, error = await process.communicate(prompt.encode())
    return process.returncode, out.decode(), error.decode()


class Terminal:
    """The program at a terminal of 80 columns; ``type`` writes, ``until`` reads."""

    def __init__(self, fabric: Fabric, *flags: str, **more: str) -> None:
        self.seen = ""
        self._fabric, self._flags, self._more = fabric, flags, more

    async def __aenter__(self) -> Terminal:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._process = await asyncio.create_subprocess_exec(
            *CHAT,
            *self._flags,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ(self._fabric, **self._more),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def _read(self) -> None:
        try:
            self.seen += os.read(self._master, 65_536).decode(errors="replace")
        except OSError:  # the program has ended
            asyncio.get_running_loop().remove_reader(self._master)
        self._news.set()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def until(self, text: str) -> str:
        """Return what was shown up to ``text``, since the last call."""
        async with asyncio.timeout(20):
            while text not in self.seen:
                self._news.clear()
                await self._news.wait()
        before, _, self.seen = self.seen.partition(text)
        return before

    async def exit_code(self) -> int:
        async with asyncio.timeout(20):
            return await self._process.wait()


# ── in a pipe ─────────────────────────────────────────────────────────────────────────────────


async def test_a_prompt_is_answered_by_the_only_model(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    assert await piped(fabric, prompt="What?\nAnd why?\n") == (0, "Hello, world\n", "")
    asked = (await engine.started()).json
    assert asked["messages"] == [{"role": "user", "content": "What?\nAnd why?"}]
    assert asked["stream"] is True


async def test_the_answer_may_be_an_object(fabric: Fabric) -> None:
    code, out, _ = await piped(fabric, "--json")
    told = json.loads(out)
    assert (code, told["text"], told["finish_reason"]) == (0, "Hello, world", "stop")
    assert (told["prompt_tokens"], told["completion_tokens"]) == (7, 3)


@pytest.mark.parametrize("flags", [(), ("--json",)])
async def test_what_a_model_says_moves_no_cursor(
    fabric: Fabric, engine: ScriptedEngine, flags: tuple[str, ...]
) -> None:
    engine.plan = Plan(chunks=(HOSTILE, "\tcode\nline"))
    code, out, _ = await piped(fabric, *flags)
    assert code == 0
    assert all(line.isprintable() for line in out.split("\n")), out
    if flags:
        assert json.loads(out)["text"] == f"{HOSTILE}\tcode\nline"
    else:
        assert out.endswith("    code\nline\n")


async def test_the_key_may_be_in_a_file(fabric: Fabric, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{fabric.key}\n")
    code, out, _ = await piped(fabric, "--key-file", str(file), FABRIC_API_KEY="")
    assert (code, out) == (0, "Hello, world\n")


@pytest.mark.parametrize(
    ("flags", "more", "says"),
    [
        ((), {"FABRIC_API_KEY": ""}, "set FABRIC_API_KEY, or give --key-file"),
        ((), {"FABRIC_API_KEY": "sk-fab-wrong"}, "check the key in FABRIC_API_KEY"),
        (("--key-file", "/nowhere"), {}, "/nowhere"),
        ((), {"FABRIC_URL": ""}, "which server? Give --url"),
        (("--url", "gpu"), {}, "'gpu' is not a URL"),
        (("--url", "https://127.0.0.1:1"), {}, "check --url, and that the server runs"),
        (("--ca", "/nowhere"), {}, "'/nowhere' can't be used as CA file"),
        ((), {"FABRIC_CA": ""}, "give the server's CA with --ca"),
        (("--model", "gone"), {}, "choose another model with --model"),
        (("--model", f"gone{HOSTILE}".replace("\x07", "")), {}, "printable characters"),
    ],
)
async def test_what_fails_is_one_sentence_with_a_remedy(
    fabric: Fabric, flags: tuple[str, ...], more: dict[str, str], says: str
) -> None:
    code, out, error = await piped(fabric, *flags, **more)
    assert (code, out) == (2, ""), error
    assert error.startswith("fabric-client: ")
    assert error.count("\n") == 1
    assert error.rstrip("\n").isprintable()
    assert says in error
    assert fabric.key not in error


async def test_without_a_prompt_nothing_is_asked(fabric: Fabric, engine: ScriptedEngine) -> None:
    code, _, error = await piped(fabric, prompt=" \n")
    assert (code, engine.requests) == (2, [])
    assert "write one to standard input" in error


async def test_a_broken_answer_is_told_after_what_had_come(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=("Hel", "lo"), cut_after=1)
    code, out, error = await piped(fabric)
    assert (code, out) == (2, "Hel")
    assert "ask again" in error


async def test_with_several_models_one_must_be_named(tmp_path: Path) -> None:
    async with ScriptedEngine(models=("a", "b")) as engine, Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        code, _, error = await piped(fabric)
        assert code == 2
        assert "--model with one of: a, b" in error
        assert (await piped(fabric, "--model", "b"))[0] == 0
        assert (await piped(fabric, FABRIC_MODEL="b"))[0] == 0
        async with Terminal(fabric) as terminal:
            await terminal.until("Model (number or name): ")
            terminal.type("7\n")
            await terminal.until("Model (number or name): ")
            terminal.type("2\n")
            await terminal.until("This is b.")


async def test_who_has_read_enough_gets_no_traceback(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=[f"{number}\n" * 5000 for number in range(50)])
    process = await asyncio.create_subprocess_shell(
        f"echo hi | {' '.join(CHAT)} | head -n 1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environ(fabric),
    )
    out, error = await process.communicate()
    assert (out, error) == (b"0\n", b"")


# ── in a terminal ─────────────────────────────────────────────────────────────────────────────


async def test_a_conversation_goes_on_until_ctrl_d(fabric: Fabric, engine: ScriptedEngine) -> None:
    async with Terminal(fabric) as terminal:
        await terminal.until("This is tiny. Ctrl-C stops an answer, Ctrl-D ends.")
        await terminal.until("> ")
        terminal.type("Hi\n")
        assert "Hello, world" in await terminal.until("> ")
        terminal.type("\n")
        await terminal.until("> ")
        terminal.type("And you?\n")
        await terminal.until("> ")
        assert [one["content"] for one in _asked(engine)] == ["Hi", "Hello, world", "And you?"]
        terminal.type(CTRL_C)  # at the prompt it ends nothing
        await terminal.until("> ")
        terminal.type(CTRL_D)
        assert await terminal.exit_code() == 0
    assert "Traceback" not in terminal.seen


async def test_ctrl_c_stops_the_answer_and_the_engine_not_the_program(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plans.append(Plan(chunks=("Once upon", asyncio.Event())))
    async with Terminal(fabric) as terminal:
        await terminal.until("> ")
        terminal.type("A story\n")
        await terminal.until("Once upon")
        terminal.type(CTRL_C)
        await terminal.until("(stopped)")
        await (await engine.started()).aborted()
        await terminal.until("> ")
        terminal.type("Hi\n")
        assert "Hello, world" in await terminal.until("> ")
        contents = [one["content"] for one in _asked(engine)]
        assert contents == ["A story", "Once upon", "Hi"]


async def test_an_error_ends_no_conversation_and_is_not_remembered(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(status=400)
    async with Terminal(fabric) as terminal:
        await terminal.until("> ")
        terminal.type("First\n")
        await terminal.until("First")
        assert "Hello" not in await terminal.until("> ")
        engine.plan = Plan()
        terminal.type("Second\n")
        assert "Hello, world" in await terminal.until("> ")
        assert [one["content"] for one in _asked(engine)] == ["Second"]


async def test_a_terminal_asks_for_the_key_and_does_not_show_it(fabric: Fabric) -> None:
    async with Terminal(fabric, FABRIC_API_KEY="") as terminal:
        await terminal.until("API key: ")
        terminal.type(f"{fabric.key}\n")
        assert fabric.key not in await terminal.until("> ")


async def test_thinking_is_said_and_control_characters_do_not_reach_the_terminal(
    fabric: Fabric, engine: ScriptedEngine
) -> None:
    engine.plan = Plan(chunks=(HOSTILE,), reasoning="Let me see")
    async with Terminal(fabric) as terminal:
        await terminal.until("> ")
        terminal.type("Hi\n")
        await terminal.until("(thinking)")
        shown = await terminal.until("> ")
    assert "\\x1b[2Jred" in shown
    assert shown.replace("\r\n", "").isprintable()


def _asked(engine: ScriptedEngine) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = engine.requests[-1].json["messages"]
    return messages
