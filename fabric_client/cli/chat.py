"""``fabric-client chat``: talk to a model through the fabric, from a terminal or a pipe."""

from __future__ import annotations

import contextlib
import getpass
import os
import ssl
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from fabric_client.cli import Json
from fabric_client.sdk import Answer, Broken, Client, FabricError, Message, Refused
from fabric_client.sdk.client import Streaming
from runtime.output import Failure, note, say_json
from runtime.shown import one_line, prose

KEY, URL, CA, MODEL = "FABRIC_API_KEY", "FABRIC_URL", "FABRIC_CA", "FABRIC_MODEL"
TAB = "    "
"""The text that stands for a tab: others' control characters don't reach the terminal."""

_REMEDIES = {
    401: f"check the key in {KEY}, or in the file of --key-file",
    403: "ask the operator what this key may do",
    404: "choose another model with --model, or check the URL",
    429: "wait a moment, or ask the operator for higher limits",
    503: "try again later",
}


def chat(
    model: Annotated[
        str | None,
        typer.Option("--model", envvar=MODEL, help="The model (default: the only one, or asked)."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", envvar=URL, help="The server, such as https://gpu.example.org:18080."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", metavar="FILE", help=f"File with the API key (default: {KEY})."),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            envvar=CA,
            metavar="FILE",
            help="The server's CA certificate, if this system does not trust it.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Talk to a model through the server.

    In a terminal: Ctrl-C stops an answer, Ctrl-D ends. Otherwise standard input is one prompt, and
    its answer goes to standard output; with --json as an object. The key is never an argument: it
    is in FABRIC_API_KEY, in a file, or asked for. Exit code 2: there was no whole answer.
    """
    if url is None:
        raise Failure(
            f"which server? Give --url, such as https://gpu.example.org:18080, or set {URL}."
        )
    _refuse_clear_text(url)
    asks = sys.stdin.isatty() and not json
    try:
        client = Client(url, _key(key_file, asks), ca=None if ca is None else str(ca), retries=0)
    except ValueError as error:
        raise Failure(f"{error}.") from None
    with client, _quiet_about_closed_pipes():
        try:
            model = model or _choose(client.models(), asks)
            if asks:
                _converse(client, model)
            else:
                _answer_once(client, model, json)
        except FabricError as error:
            raise Failure(_explain(error)) from None


def _refuse_clear_text(url: str) -> None:
    """Raise ``Failure`` if the key and the prompts would leave this machine unencrypted."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise Failure(f"{url!r} is not a URL like https://gpu.example.org:18080.") from None
    if parts.scheme == "http" and not _is_loopback(host):
        raise Failure(
            f"with http:// the key and the prompts would go to {host} unencrypted: give the "
            "server's https:// address."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False


def _key(file: Path | None, asks: bool) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"the key can't be read from {file}: {error}.") from None
    key = os.environ.get(KEY, "")
    if key or not asks:
        if not key:
            raise Failure(f"there is no API key: set {KEY}, or give --key-file.")
        return key
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        key = getpass.getpass("API key: ")
    if not key.strip():
        raise Failure("no key was given.")
    return key


def _choose(models: list[str], asks: bool) -> str:
    """Return the model to talk to: the only one, or the one that is asked for."""
    if not models:
        raise Failure("no model can be used now with this key: ask the operator.")
    if len(models) == 1:
        return models[0]
    if not asks:
        raise Failure(f"which model? Give --model with one of: {', '.join(models)}.")
    for number, name in enumerate(models, 1):
        note(f"{number:3}  {name}")
    while True:
        try:
            given = input("Model (number or name): ").strip()
        except (EOFError, KeyboardInterrupt):
            raise Failure("no model was chosen.") from None
        if given in models:
            return given
        if given.isdecimal() and 1 <= int(given) <= len(models):
            return models[int(given) - 1]


# ── in a pipe ─────────────────────────────────────────────────────────────────────────────────


def _answer_once(client: Client, model: str, json: bool) -> None:
    prompt = sys.stdin.read().strip()
    if not prompt:
        raise Failure("there is no prompt: write one to standard input.")
    with client.stream(model, prompt) as pieces:
        for piece in pieces:
            if not json:
                _show(piece.text)
    if json:
        say_json(_fields(pieces.answer))
    else:
        _end_line(pieces.answer.text)


def _fields(answer: Answer) -> dict[str, object]:
    return {
        "model": answer.model,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "request_id": answer.request_id,
    }


# ── in a terminal ─────────────────────────────────────────────────────────────────────────────


def _converse(client: Client, model: str) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() a line editor; Windows has its own
    note(f"This is {model}. Ctrl-C stops an answer, Ctrl-D ends.")
    said: list[Message] = []
    while True:
        try:
            prompt = input("> ").strip()
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("")
            continue
        if not prompt:
            continue
        said.append({"role": "user", "content": prompt})
        text = _answer(client, model, said)
        if text:
            said.append({"role": "assistant", "content": text})
        else:
            said.pop()  # it was not answered, and may be asked again


def _answer(client: Client, model: str, said: list[Message]) -> str:
    """Show the answer to a conversation, and return its text, as far as it came."""
    pieces: Streaming | None = None
    try:
        with client.stream(model, said) as pieces:
            thinks = False
            for piece in pieces:
                if piece.reasoning and not thinks:
                    thinks = True
                    note("(thinking)")
                _show(piece.text)
    except KeyboardInterrupt:
        _end_line(_text(pieces))
        note("(stopped)")
    except FabricError as error:
        _end_line(_text(pieces))
        note(_explain(error))
    else:
        _end_line(_text(pieces))
    return _text(pieces)


def _text(pieces: Streaming | None) -> str:
    return "" if pieces is None else pieces.answer.text


def _show(text: str) -> None:
    sys.stdout.write(prose(text.replace("\t", TAB)))
    sys.stdout.flush()


def _end_line(text: str) -> None:
    if text and not text.endswith("\n"):
        _show("\n")


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────


def _explain(error: FabricError) -> str:
    """Return one sentence: what happened, and what to do."""
    what = one_line(str(error)).rstrip(".")
    if isinstance(error, Refused):
        remedy = _REMEDIES.get(error.status)
    elif isinstance(error, Broken):
        remedy = "ask again"
    elif isinstance(error.__cause__, ssl.SSLCertVerificationError):
        remedy = "give the server's CA with --ca: its operator has it, as certs/ca.pem"
    else:
        remedy = "check --url, and that the server runs"
    return f"{what}." if remedy is None else f"{what}: {remedy}."


@contextlib.contextmanager
def _quiet_about_closed_pipes() -> Iterator[None]:
    """End in silence when whoever reads the answer, such as ``head``, has read enough."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
