# ruff: noqa: T201 - its output is for people
"""The whole fabric on one machine, by the commands that an operator would type: ``make run``.

    fabric-server up                          in .fabric/server
    fabric-server keys create "make run"      stored in .fabric/key for the next run
    fabric-server nodes invite
    fabric-client join -                      in .fabric/node, once
    fabric-client run                         with the engines found here, or a demo

Then it sends one chat request, and runs until Ctrl-C, which stops everything.  Settings of server
and node come from the environment, as in ``FABRIC_SERVER_PUBLIC_PORT=28080 make run``.
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
from fabric_client.engines.discovery import DEFAULT_PORTS
from fabric_client.engines.echo import MODEL as ECHO
from fabric_client.engines.echo import EchoEngine, serve
from fabric_client.engines.watcher import Watcher
from fabric_client.identity import Identity, NotJoined
from protocol.messages import EngineReport
from runtime.files import write
from runtime.flags import read
from runtime.run import INTERRUPTED, Signals, run
from runtime.settings import SettingsError
from runtime.shown import one_line, printable

QUESTION = "Say hello in one short sentence."
START_SECONDS = 30.0
STOP_SECONDS = 90.0
"""More than the time that server and node give to running requests."""


class StepFailed(Exception):
    """A step that failed; ``str()`` is a sentence for the user."""


async def main(data: Path, signals: Signals) -> None:
    running = asyncio.ensure_future(run_steps(data))
    stop = asyncio.ensure_future(signals.stop.wait())
    await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        print("\nStopping.", flush=True)
        running.cancel()
    stop.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def run_steps(data: Path) -> None:
    """Run every step; programs are stopped in the reverse order of their start."""
    async with AsyncExitStack() as stack:
        logs = data / "server.log", data / "node.log"
        up = ("fabric_server", "up", "--json", "--data", f"{data}/server")
        server = await stack.enter_async_context(program(logs[0], *up))
        ready = await read_ready(server, logs[0])
        key = await key_for(data)
        await join(data, ready)
        engines, model = await find_engines(data, stack)
        # A demo should run on battery, too.
        flags = ("--data", f"{data}/node", "--no-pause-on-battery")
        run = ("fabric_client", "run", *flags, *engines)
        node = await stack.enter_async_context(program(logs[1], *run))
        url = ready["local_url"]
        await wait_for_model(url, key, model, node, logs[1])
        print_summary(ready, key, model, data)
        await send_request(url, key, model)
        print(f"\nRunning until Ctrl-C. Logs: {logs[0]}, {logs[1]}", flush=True)
        ends = [asyncio.ensure_future(one.wait()) for one in (server, node)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end, log in zip(ends, logs, strict=True):
            if end.done():
                raise StepFailed(last_line(log))


# ── programs ──────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def program(log: Path, *command: str) -> AsyncIterator[Process]:
    """Run a program with its log in a file.  Ctrl-C does not reach it: it is stopped in turn."""
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
        for timeouts in (STOP_SECONDS, 5.0):  # the second signal stops it at once
            if process.returncode is None:
                process.terminate()
                with suppress(TimeoutError, asyncio.CancelledError):
                    async with asyncio.timeout(timeouts):
                        await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def command(*words: str, stdin: str = "") -> str:
    """Run a command to its end, and return its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *words, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    out, error = await process.communicate(stdin.encode())
    if process.returncode:
        raise StepFailed(error.decode().strip())
    return out.decode()


async def read_ready(server: Process, log: Path) -> dict[str, Any]:
    assert server.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await server.stdout.readline()
    except TimeoutError:
        raise StepFailed(f"The server did not start in time: see its log, {log}.") from None
    if not line:
        await server.wait()
        raise StepFailed(
            f"{last_line(log)}\n(Settings come from the environment, as in "
            "FABRIC_SERVER_PUBLIC_PORT=28080 make run.)"
        )
    ready: dict[str, Any] = json.loads(line)
    if ready["local_url"] is None:
        raise StepFailed(
            "The setting host must include 127.0.0.1: make run sends its request there."
        )
    return ready


def last_line(log: Path) -> str:
    """Return the error that a program ended with."""
    lines = log.read_text(errors="replace").splitlines()
    if lines and not lines[-1].startswith("{"):
        return lines[-1]
    return f"A program ended unexpectedly: see its log, {log}."


# ── steps ─────────────────────────────────────────────────────────────────────────────────────


async def key_for(data: Path) -> str:
    """Return the stored key if it still works, otherwise a new one."""
    file, server = data / "key", ("--data", f"{data}/server")
    saved = file.read_text().strip() if file.exists() else ""
    listed = json.loads(await command("fabric_server", "keys", "list", "--json", *server))
    if any(saved.startswith(one["prefix"]) and one["state"] == "good" for one in listed):
        return saved
    made = await command("fabric_server", "keys", "create", "make run", *server)
    write(file, made, secret=True)
    return made.strip()


async def join(data: Path, ready: dict[str, Any]) -> None:
    """Make this machine a node of the server, unless it is one."""
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
    """Return flags for the node and a model to use; start the demo engine if there is none."""
    environ = {name: value for name, value in os.environ.items() if name != TOKEN}
    settings = read(Config, PREFIX, environ=environ, flags={"data": data / "node"}, file=None)
    async with aiohttp.ClientSession() as session:
        addresses = [parse_address(text) for text in settings.engine]
        ports = tuple(DEFAULT_PORTS) if settings.discovers else ()
        reports = await Watcher(session, addresses, ports=ports).refresh()
    for report in reports:
        found = f"Engine {report.name}: {report.problem or f'{len(report.models)} models'}"
        print(one_line(found))
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
    """Return a chat model: a loaded one, else the smallest, which loads fastest."""
    models = [model for report in reports if report.healthy for model in report.models]
    chat_models = [
        model
        for model in models
        if "embedding" not in model.capabilities and "embed" not in model.name.lower()
    ]
    chat_models.sort(key=lambda model: (not model.loaded, model.size or 0))
    return chat_models[0].name if chat_models else None


async def wait_for_model(url: str, key: str, model: str, node: Process, log: Path) -> None:
    headers = {"authorization": f"Bearer {key}"}
    give_up = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession(headers=headers) as session:
        while node.returncode is None and time.monotonic() < give_up:
            async with session.get(f"{url}/models") as answer:
                if any(one["id"] == model for one in (await answer.json())["data"]):
                    return
            await asyncio.sleep(0.1)
    if node.returncode is not None:
        raise StepFailed(last_line(log))
    raise StepFailed(f"The node does not serve '{model}': see its log, {log}.")


def print_summary(ready: dict[str, Any], key: str, model: str, data: Path) -> None:
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


async def send_request(url: str, key: str, model: str) -> None:
    """Send the request, and print the response while it streams."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    headers = {"authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.post(f"{url}/chat/completions", json=body) as answer,
    ):
        if answer.status != 200:
            print(printable(f"({answer.status}) {await answer.text()}"))
            return
        async for line in answer.content:
            text = line.decode().strip().removeprefix("data: ")
            if text.startswith("{"):
                print(printable(text_of(json.loads(text))), end="", flush=True)
    print()


def text_of(chunk: dict[str, Any]) -> str:
    if "error" in chunk:
        return f"\n{chunk['error']['message']}"
    deltas = [choice["delta"] for choice in chunk["choices"]]
    kinds = ("reasoning", "reasoning_content", "content")
    return "".join(delta.get(kind) or "" for delta in deltas for kind in kinds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start the whole fabric on this machine.")
    parser.add_argument("--data", type=Path, default=Path(".fabric"), help="directory for all data")
    directory: Path = parser.parse_args().data
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        code = run(lambda signals: main(directory, signals))
    except (StepFailed, SettingsError) as failure:
        print(failure, file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if code == INTERRUPTED else code)
