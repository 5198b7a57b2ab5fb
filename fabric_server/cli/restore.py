"""``fabric-server restore``: put back what ``backup`` wrote, or check it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from fabric_server.backup.age_keys import Identity, Passphrase, SecretKeys
from fabric_server.backup.archive import ArchiveReader, open_archive
from fabric_server.backup.placing import why
from fabric_server.backup.problem import BackupProblem
from fabric_server.backup.restoring import (
    Place,
    Restored,
    check_archive,
    require_empty,
    restore_archive,
)
from fabric_server.cli import Json
from fabric_server.cli.backup import (
    PROGRESS_SECONDS,
    PassphraseFile,
    in_megabytes,
    passphrase,
    read_secret,
)
from fabric_server.config import PREFIX, Config
from fabric_server.net.takeover import running_server
from runtime.flags import read, takes_settings
from runtime.output import Failure, moment, note, say, say_json
from runtime.settings import SettingsError, describe

STDIN = "-"

restore_command = takes_settings(Config, PREFIX, only=("data", "store", "cache"))
"""Decorates the command."""


@restore_command
def restore(
    settings: Config,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What 'backup' wrote; - is standard input.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Read and check all of it, and write nothing.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    identity_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the secret key, AGE-SECRET-KEY-1…, for a backup that is encrypted to "
            "a public key.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Keep what is in data beside what is restored, in before-restore-…."
        ),
    ] = False,
    without_store: Annotated[
        bool, typer.Option("--without-store", help="Restore the data directory alone.")
    ] = False,
    json: Json = False,
) -> None:
    """Put back what 'backup' wrote, into an empty data directory and an empty store.

    The whole file is read and checked before anything is put in place. SQLite's store goes into
    the data directory, or where 'store' says; PostgreSQL's into the empty database that 'store'
    names. An older schema is brought up to date. Keys and nodes that were revoked after the backup
    are revoked again, as far as Redis ('cache') knows of them.
    """
    if not check:
        _refuse_running(settings.data)
        if not force:
            require_empty(settings.data)
    with _reading(file) as source:
        progress = _Progress()
        try:
            archive, encrypted = open_archive(
                source, lambda: _identity(passphrase_file, identity_file), progress
            )
            restored = None
            if check:
                check_archive(archive)
            else:
                place = _place(settings, force, not without_store)
                restored = asyncio.run(restore_archive(archive, place))
        except BackupProblem as error:
            raise BackupProblem(f"{file}: {error}") from None
        except OSError as error:
            raise BackupProblem(
                f"{file} can't be restored to {settings.data} ({why(error)}), and nothing that was "
                "there was changed: make room, unmount what is mounted there, or run as the "
                "server's user or as root."
            ) from None
    if restored is None:
        _report_check(file, archive, progress, encrypted, json)
    else:
        _report(settings, restored, json)


def _refuse_running(data: Path) -> None:
    running = running_server(data)
    if running is not None:
        process = f" (process {running.pid})" if running.pid else ""
        raise Failure(
            f"a server runs with {data}{process}: stop it first, or set --data to another "
            "directory."
        )


def _place(settings: Config, force: bool, with_store: bool) -> Place:
    sources = {name: source for name, _, source in describe(settings)}

    def setting(name: str, file: Path | None) -> str:
        """Return a setting as the server will have it: by flag or environment, or by the file."""
        found = settings
        if file is not None and sources[name] == "default":
            flags = {"data": str(settings.data)}
            try:
                found = read(Config, PREFIX, environ=os.environ, flags=flags, file=file)
            except SettingsError as error:
                raise BackupProblem(
                    f"its settings file can't be used here ({error}) Set --store and --cache."
                ) from None
        return found.store_url if name == "store" else found.cache

    return Place(
        data=settings.data,
        force=force,
        with_store=with_store,
        store_url=lambda file: setting("store", file),
        cache_url=lambda file: setting("cache", file),
    )


def _identity(passphrase_file: Path | None, identity_file: Path | None) -> Identity:
    if passphrase_file is not None and identity_file is not None:
        raise Failure("choose one of --passphrase-file and --identity-file.")
    if identity_file is not None:
        text = read_secret(identity_file, "--identity-file")
        return SecretKeys(text, f"--identity-file {identity_file}")
    return Passphrase(passphrase(passphrase_file, new=False))


@contextmanager
def _reading(file: str) -> Iterator[BinaryIO]:
    if file == STDIN:
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).expanduser().open("rb")
    except OSError as error:
        raise Failure(f"{file} can't be read ({error.strerror or error}).") from None
    with source:
        yield source


class _Progress:
    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS_SECONDS
        self.size = 0

    def __call__(self, size: int) -> None:
        self.size += size
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            note(f"{in_megabytes(self.size)} read")


# ── reports ───────────────────────────────────────────────────────────────────────────────────


def _report_check(
    file: str, archive: ArchiveReader, progress: _Progress, encrypted: bool, json: bool
) -> None:
    about, counts = archive.about, archive.counts
    if json:
        say_json(
            {
                "path": file,
                "at": about.at,
                "version": about.version,
                "schema": len(about.schema),
                "store": about.store,
                "encrypted": encrypted,
                "addresses": about.addresses,
                "keys": counts.keys,
                "nodes": counts.nodes,
                "unpacked_bytes": progress.size,
            }
        )
        return
    say(f"{file} is complete and undamaged, {in_megabytes(progress.size)} unpacked.")
    say(f"  made      {moment(about.at)}, by Fabric {about.version}")
    say(f"  server    {', '.join(about.addresses)}")
    say(f"  store     {about.store}, {counts.keys} keys, {counts.nodes} nodes")
    say(f"  encrypted {'yes' if encrypted else 'no: it holds the CA key in clear'}")


def _report(settings: Config, restored: Restored, json: bool) -> None:
    about, counts = restored.about, restored.counts
    if json:
        say_json(
            {
                "data": settings.data.absolute(),
                "at": about.at,
                "version": about.version,
                "store": about.store,
                "addresses": about.addresses,
                "keys": counts.keys,
                "nodes": counts.nodes,
                "revoked_again": restored.revoked_again,
                "revocations": restored.cache_problem or "ok",
                "revocations_before": restored.before_problem or "ok",
                "moved": restored.moved,
                "given": about.given,
                "left_out": about.left_out,
            }
        )
        return
    say(f"Restored {settings.data} as of {moment(about.at)}, by Fabric {about.version}.")
    for path in restored.moved:
        say(f"What was there before is in {path}.")
    if about.given:
        say("The server had these settings in its environment or flags; set them again:")
        say(f"  {', '.join(about.given)}")
    for name in about.left_out:
        say(f"Not in the backup: {name}")
    if not restored.store_url:
        say("The store was not restored.")
        return
    say(f"{counts.keys} keys and {counts.nodes} nodes are valid as of the backup.")
    if restored.revoked_again:
        say(f"{restored.revoked_again} were revoked since, and are revoked again.")
    if restored.before_problem:
        say(f"The store before can't say what was revoked ({restored.before_problem}).")
    if restored.cache_problem or restored.before_problem:
        reason = "there is no Redis that knows"
        if restored.cache_problem not in ("memory", ""):
            reason = f"Redis can't say it now ({restored.cache_problem})"
        elif not restored.cache_problem:
            reason = "Redis may not know all of it"
        say(f"Revoke again what was revoked since: {reason}.")
        say("  fabric-server keys list, keys revoke ID; nodes list, nodes revoke ID")
