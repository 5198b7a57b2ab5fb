# ruff: noqa: T201 - it is for printing
"""The whole fabric on one machine, with the commands that anybody would type: ``make run``.

    fabric-server up                          in .fabric/server
    fabric-server keys create "make run"      kept in .fabric/key for the next time
    fabric-server nodes invite
    fabric-client join -                      in .fabric/node, once
    fabric-client run                         with the engines found here, or a demo

Then it asks one question and stays until Ctrl-C, which ends all of it.  Settings of server and node
come from the environment, as in ``FABRIC_SERVER_PUBLIC_PORT=28080 make run``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shlex
import ssl
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from fabric_client.cli import TOKEN
from fabric_client.config import PREFIX, Config
from fabric_client.engines.addresses import parse_address
from fabric_client.engines.echo import MODEL as ECHO
from fabric_client.engines.echo import EchoEngine, serve
from fabric_client.engines.watcher import Watcher
from fabric_client.identity import Identity, NotJoined, write
from protocol.messages import EngineReport
from runtime.flags import read
from runtime.run import INTERRUPTED, Signals, run
from runtime.settings import SettingsError

QUESTION = "Say hello in one short sentence."
START_SECONDS = 30.0
STOP_SECONDS = 90.0
"""More than server and node give to what is running."""


class Trouble(Exception):
    """Why it can't go on: a sentence for the user."""


async def main(data: Path, signals: Signals) -> None:
    story = asyncio.ensure_future(tell(data))
    stop = asyncio.ensure_future(signals.stop.wait())
    await asyncio.wait((story, stop), return_when=asyncio.FIRST_COMPLETED)
    if not story.done():
        print("\nStopping.", flush=True)
        story.cancel()
    stop.cancel()
    with suppress(asyncio.CancelledError):
        await story


async def tell(data: Path) -> None:
    """Everything, in order; what was started is ended in the opposite order."""
    async with AsyncExitStack() as stack:
        logs = data / "server.log", data / "node.log"
        up = ("fabric_server", "up", "--json", "--data", f"{data}/server")
        server = await stack.enter_async_context(program(logs[0], *up))
        ready = await told_ready(server, logs[0])
        key = await key_for(data)
        await join(data, ready)
        engines, model = await find_engines(data, stack)
        # It is here to be seen, on battery too.
        flags = ("--data", f"{data}/node", "--no-pause-on-battery")
        run = ("fabric_client", "run", *flags, *engines)
        node = await stack.enter_async_context(program(logs[1], *run))
        url = ready["local_url"]
        await model_served(url, key, model, node, logs[1])
        explain(ready, key, model, data)
        await ask(url, key, model)
        print(f"\nRunning until Ctrl-C. Logs: {logs[0]}, {logs[1]}", flush=True)
        ends = [asyncio.ensure_future(one.wait()) for one in (server, node)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end, log in zip(ends, logs, strict=True):
            if end.done():
                raise Trouble(last_words(log))


# ── programs ──────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def program(log: Path, *command: str) -> AsyncIterator[Process]:
    """Runs beside us, its log in a file.  Ctrl-C reaches only us, so that we end it in turn."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *command,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for timeouts in (STOP_SECONDS, 5.0):  # the second signal means: now
            if process.returncode is None:
                process.terminate()
                with suppress(TimeoutError, asyncio.CancelledError):
                    async with asyncio.timeout(timeouts):
                        await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def command(*words: str, stdin: str = "") -> str:
    """Runs to its end; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *words, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    out, error = await process.communicate(stdin.encode())
    if process.returncode:
        raise Trouble(error.decode().strip())
    return out.decode()


async def told_ready(server: Process, log: Path) -> dict[str, Any]:
    assert server.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await server.stdout.readline()
    except TimeoutError:
        raise Trouble(f"The server does not start; its log is {log}.") from None
    if not line:
        await server.wait()
        raise Trouble(
            f"{last_words(log)}\n(Settings come from the environment, as in "
            "FABRIC_SERVER_PUBLIC_PORT=28080 make run.)"
        )
    ready: dict[str, Any] = json.loads(line)
    if ready["local_url"] is None:
        raise Trouble("The setting host leaves out 127.0.0.1, at which make run asks its question.")
    return ready


def last_words(log: Path) -> str:
    """The sentence with which a program of ours ended."""
    lines = log.read_text(errors="replace").splitlines()
    if lines and not lines[-1].startswith("{"):
        return lines[-1]
    return f"A program ended by itself; its log is {log}."


# ── steps ─────────────────────────────────────────────────────────────────────────────────────


async def key_for(data: Path) -> str:
    """The key of the last time, as long as it is good: only its hash is in the store."""
    file, server = data / "key", ("--data", f"{data}/server")
    kept = file.read_text().strip() if file.exists() else ""
    listed = json.loads(await command("fabric_server", "keys", "list", "--json", *server))
    if any(kept.startswith(one["prefix"]) and one["state"] == "good" for one in listed):
        return kept
    made = await command("fabric_server", "keys", "create", "make run", *server)
    write(file, made, secret=True)
    return made.strip()


async def join(data: Path, ready: dict[str, Any]) -> None:
    """Makes this machine a node of the server, unless it is one."""
    directory, server = data / "node", ("--data", f"{data}/server")
    listed = json.loads(await command("fabric_server", "nodes", "list", "--json", *server))
    with suppress(NotJoined):
        node = Identity.load(directory)
        authority = ssl.PEM_cert_to_DER_cert((directory / "ca.pem").read_text())
        if (
            hashlib.sha256(authority).hexdigest() == ready["ca_sha256"]
            and node.control_port == ready["ports"]["control"]
            and node.ends > time.time()
            and any(node.node_id == one["id"] and one["state"] == "good" for one in listed)
        ):
            return
    invite = ("nodes", "invite", "--name", "make run", "--address", "localhost", *server)
    token = await command("fabric_server", *invite)
    await command("fabric_client", "join", "-", "--replace", "--data", str(directory), stdin=token)


async def find_engines(data: Path, stack: AsyncExitStack) -> tuple[list[str], str]:
    """Flags for the node, and a model to ask.  Without any model, the demo is started."""
    environ = {name: value for name, value in os.environ.items() if name != TOKEN}
    settings = read(Config, PREFIX, environ=environ, flags={"data": data / "node"}, file=None)
    async with aiohttp.ClientSession() as session:
        addresses = [parse_address(text) for text in settings.engine]
        reports = await Watcher(session, addresses, discover=settings.discovers).refresh()
    for report in reports:
        print(f"Engine {report.name}: {report.problem or f'{len(report.models)} models'}")
    model = choose(reports)
    if model is not None:
        return [], model
    print(
        "No engine with a model is running here, so the built-in echo engine answers: a demo, and\n"
        "no language model. Start Ollama, vLLM, llama-server or LM Studio, and run this again."
    )
    runner, port = await serve(EchoEngine(), host="127.0.0.1", port=0)
    stack.push_async_callback(runner.cleanup)
    flags = ["--discover" if settings.discovers else "--no-discover"]
    for address in (*settings.engine, f"openai=http://127.0.0.1:{port}"):
        flags += ["--engine", address]
    return flags, ECHO


def choose(reports: Sequence[EngineReport]) -> str | None:
    """A model for chat: one that is loaded, else the smallest, because it will be loaded soon."""
    models = [model for report in reports if report.healthy for model in report.models]
    chatty = [
        model
        for model in models
        if "embedding" not in model.capabilities and "embed" not in model.name.lower()
    ]
    chatty.sort(key=lambda model: (not model.loaded, model.size or 0))
    return chatty[0].name if chatty else None


async def model_served(url: str, key: str, model: str, node: Process, log: Path) -> None:
    headers = {"authorization": f"Bearer {key}"}
    give_up = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession(headers=headers) as session:
        while node.returncode is None and time.monotonic() < give_up:
            async with session.get(f"{url}/models") as answer:
                if any(one["id"] == model for one in (await answer.json())["data"]):
                    return
            await asyncio.sleep(0.1)
    if node.returncode is not None:
        raise Trouble(last_words(log))
    raise Trouble(f"The node does not offer '{model}'; its log is {log}.")


def explain(ready: dict[str, Any], key: str, model: str, data: Path) -> None:
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": "Hello!"}],
    }
    here = Path(sys.executable).parent
    shown = here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here
    print(f"""
The fabric is up.

  URL    {ready["local_url"]}
  Key    {key}
  Model  {model}

  curl -N {ready["local_url"]}/chat/completions \\
    -H 'Authorization: Bearer {key}' \\
    -H 'Content-Type: application/json' \\
    -d {shlex.quote(json.dumps(body))}

From other machines: {ready["public_url"]}, trusting {data}/server/certs/ca.pem
Another node:        {shown}/fabric-server nodes invite --data {data}/server

> {QUESTION}""")


async def ask(url: str, key: str, model: str) -> None:
    """Prints the answer as it comes."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    headers = {"authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.post(f"{url}/chat/completions", json=body) as answer,
    ):
        if answer.status != 200:
            print(f"({answer.status}) {await answer.text()}")
            return
        async for line in answer.content:
            text = line.decode().strip().removeprefix("data: ")
            if text.startswith("{"):
                print(said(json.loads(text)), end="", flush=True)
    print()


def said(chunk: dict[str, Any]) -> str:
    if "error" in chunk:
        return f"\n{chunk['error']['message']}"
    deltas = [choice["delta"] for choice in chunk["choices"]]
    kinds = ("reasoning", "reasoning_content", "content")
    return "".join(delta.get(kind) or "" for delta in deltas for kind in kinds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Starts the whole fabric on this machine.")
    parser.add_argument("--data", type=Path, default=Path(".fabric"), help="where it keeps things")
    directory: Path = parser.parse_args().data
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        code = run(lambda signals: main(directory, signals))
    except (Trouble, SettingsError) as trouble:
        print(trouble, file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if code == INTERRUPTED else code)
