"""``fabric-server backup``: write one file with all that this server needs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from fabric_server.backup.age import Encryption
from fabric_server.backup.age_keys import Passphrase, PublicKey, Recipient
from fabric_server.backup.making import Made, Server, make_backup
from fabric_server.backup.problem import BackupProblem
from fabric_server.cli import Json, require_data
from fabric_server.config import PREFIX, Config
from runtime.errors import NoStore
from runtime.flags import FILE, chosen_file, takes_settings
from runtime.output import Failure, moment, note, say, say_json
from runtime.settings import describe

SHORTEST = 8
"""Characters of a passphrase."""
PROGRESS_SECONDS = 5.0
STDOUT = "-"

backup_command = takes_settings(Config, PREFIX, only=("data", "store"))
"""Decorates the command."""

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File whose first line is the passphrase.", show_default=False
    ),
]


@backup_command
def backup(
    settings: Config,
    output: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="File to write, or a directory, where it is named by the time; - is standard "
            "output. Nothing is overwritten.",
        ),
    ] = ".",
    passphrase_file: PassphraseFile = None,
    recipient: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Encrypt to this public key, age1…, of the program age; may be repeated. Its "
            "secret key need not be on this machine.",
            show_default=False,
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Do not encrypt it, though it holds the CA's key.")
    ] = False,
    without_store: Annotated[
        bool,
        typer.Option("--without-store", help="Leave the store out: it is backed up another way."),
    ] = False,
    json: Json = False,
) -> None:
    """Write one file with all that this server needs, while it runs or not.

    That is the data directory with the CA, the settings and the spool, and the store, as it is at
    one moment. The file is encrypted with a passphrase, for which you are asked, or to a public
    key. 'fabric-server restore' puts it back, and checks it with --check.
    """
    require_data(settings)
    if output == STDOUT and (json or sys.stdout.isatty()):
        raise Failure(
            "the backup itself would go to standard output: redirect that to a program or a file, "
            "and leave out --json."
        )
    target = _path(settings, output, plain)
    recipients = _recipients(passphrase_file, recipient or [], plain)
    if plain:
        note(
            "warning: the backup is not encrypted. Whoever reads it has the CA's key, and can "
            "pose as this server, and as any node."
        )
    with _writing(target) as file:
        out = _Output(file)
        encryption = Encryption(out, recipients) if recipients else None
        try:
            made = asyncio.run(
                make_backup(_server(settings, without_store), encryption or out, out.progress)
            )
        except NoStore as error:
            raise Failure(f"{error}: set --store as the server has it.") from None
        if encryption is not None:
            encryption.finish()
    for name in made.about.left_out:
        note(f"not in the backup: {name}")
    if target is not None:
        _report(target, made, out, json, encrypted=bool(recipients))


def _server(settings: Config, without_store: bool) -> Server:
    chosen = chosen_file(settings)
    own = settings.data / FILE
    given = [name for name, _, source in describe(settings) if source.startswith(("--", PREFIX))]
    data = os.path.realpath(settings.data)
    certificates = (settings.public_certificate, settings.public_key)
    return Server(
        data=settings.data,
        store_url="" if without_store else settings.store_url,
        addresses=settings.names(),
        given=[name for name in given if name not in ("data", "takeover")],
        settings_file=chosen if chosen is not None and not _same(chosen, own) else None,
        elsewhere=[
            path
            for path in certificates
            if path is not None and not os.path.realpath(path).startswith(data + os.sep)
        ],
    )


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


# ── keys ──────────────────────────────────────────────────────────────────────────────────────


def _recipients(file: Path | None, keys: Sequence[str], plain: bool) -> list[Recipient]:
    """Return for whom it is encrypted; for nobody if it is ``plain``.  Raises ``Failure``."""
    if (file is not None) + bool(keys) + plain > 1:
        raise Failure("choose one of --passphrase-file, --recipient and --plain.")
    if plain:
        return []
    if keys:
        return [PublicKey(key) for key in keys]
    return [Passphrase(_long_enough(passphrase(file, new=True)))]


def _long_enough(text: str) -> str:
    if len(text) < SHORTEST:
        raise Failure(
            f"the passphrase has fewer than {SHORTEST} characters: choose a longer one, such as "
            "six words; whoever guesses it has the CA's key."
        )
    return text


def passphrase(file: Path | None, *, new: bool) -> str:
    """Return the first line of the file, or what is typed at the prompt; a ``new`` one twice.

    Raises ``Failure``.
    """
    if file is None:
        if not sys.stdin.isatty():
            ways = "--recipient or --plain" if new else "--identity-file"
            raise Failure(
                "there is no terminal on which to ask for a passphrase: name its file with "
                f"--passphrase-file, or use {ways}."
            )
        typed: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=new, err=True)
        return typed
    lines = read_secret(file, "--passphrase-file").splitlines()
    if not lines or not lines[0]:
        raise Failure(f"{file} has no passphrase in its first line.")
    return lines[0]


def read_secret(file: Path, flag: str) -> str:
    """Return the text of a file with a secret.  Raises ``Failure``."""
    try:
        if os.name == "posix" and file.stat().st_mode & 0o077:
            note(f"warning: other users can read {file}: chmod 600 {file}")
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Failure(f"{flag} {file} can't be read ({reason}).") from None


# ── the file ──────────────────────────────────────────────────────────────────────────────────


def _path(settings: Config, output: str, plain: bool) -> Path | None:
    """Return where to write it; None is standard output.  Raises ``Failure``."""
    if output == STDOUT:
        return None
    path = Path(output).expanduser()
    if path.is_dir():
        path = _new_file(path, ".tar" if plain else ".tar.age")
    directory, data = os.path.realpath(path.parent), os.path.realpath(settings.data)
    if directory == data or directory.startswith(data + os.sep):
        raise Failure(
            f"{path} is in {settings.data}, which is what is backed up: name another place with "
            "--output, best on another disk."
        )
    if path.exists():
        raise Failure(f"{path} exists already: name another file, or a directory.")
    return path


def _new_file(directory: Path, ending: str) -> Path:
    """Return a file of this directory that is not there, named after the time."""
    stamp = time.strftime("fabric-backup-%Y%m%dT%H%M%SZ", time.gmtime())
    names = chain([f"{stamp}{ending}"], (f"{stamp}-{number}{ending}" for number in count(2)))
    return next(path for name in names if not (path := directory / name).exists())


@contextmanager
def _writing(target: Path | None) -> Iterator[BinaryIO]:
    """Open the file under another name until it is complete, for this user alone."""
    if target is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        half.unlink(missing_ok=True)
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unwritable(error) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        half.rename(target)
    finally:
        half.unlink(missing_ok=True)


class _Output:
    """The file that is written: its size, its digest, and remarks on how far it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._next = time.monotonic() + PROGRESS_SECONDS
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes, /) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            raise _unwritable(error) from None
        self._digest.update(data)
        self.size += len(data)
        return len(data)

    def progress(self, _: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            note(f"{in_megabytes(self.size)} written")


def _unwritable(error: OSError) -> BackupProblem:
    return BackupProblem(
        f"the backup can't be written ({error.strerror or error}): name another place with "
        "--output, or make room."
    )


def in_megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _report(target: Path, made: Made, out: _Output, json: bool, *, encrypted: bool) -> None:
    about, counts = made.about, made.counts
    if json:
        say_json(
            {
                "path": target.absolute(),
                "bytes": out.size,
                "sha256": out.sha256,
                "encrypted": encrypted,
                "at": about.at,
                "version": about.version,
                "schema": len(about.schema),
                "store": about.store,
                "parts": made.parts,
                "keys": counts.keys,
                "nodes": counts.nodes,
                "left_out": about.left_out,
            }
        )
        return
    say(f"Wrote {target}, {in_megabytes(out.size)}.")
    if about.store == "none":
        say("It has the data directory, and no store.")
    else:
        what = f"{counts.keys} keys and {counts.nodes} nodes"
        say(f"It has the data directory, and the store with {what}, as of {moment(about.at)}.")
    say(f"To check it: fabric-server restore --check {target}")
