"""A real PostgreSQL for tests, made within a second or two.

    with PostgresServer(tmp_path) as postgres:
        postgres.new_database()            # the URL of a fresh, empty one
        postgres.kill()                    # and start() again: nothing that was committed is lost

Not even with the `fsync` off that it has by default: what a killed process wrote is in the hands of
the kernel.  ``durable=True`` is for tests that want to wait for the disk as in real life.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGINT
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import asyncpg

from tests.lab.backends import Daemon, provide, until

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "lc_messages": "C",  # the log is read
}
# Not `synchronous_commit`: without it a commit may be in the server's memory only.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}
MAY_WRITE = "SET default_transaction_read_only = off"
READY = "database system is ready to accept connections"


class PostgresServer(Daemon):
    name = "postgres"
    stop_signal = SIGINT  # doesn't wait for clients to leave

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        super().__init__(directory)
        self.settings = {**SETTINGS, "port": str(self.port), **({} if durable else NOT_DURABLE)}

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        return create_database(self.url)

    def read_only(self, on: bool) -> None:
        """As a standby is: new connections can't write from now on, open ones soon not any more."""
        execute(
            self.url,
            MAY_WRITE,
            f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}",
            "SELECT pg_reload_conf()",
        )
        ask = "SHOW default_transaction_read_only"
        now = "on" if on else "off"
        until(lambda: execute(self.url, ask) == now, 5, "the settings were not read again")

    def _prepare(self) -> None:
        data = self.directory / "data"
        if (data / "PG_VERSION").exists():
            return
        data.mkdir(mode=0o700)
        if user := unprivileged():
            os.chown(data, user.pw_uid, user.pw_gid)
        command = [program("initdb"), "--username=postgres", "--auth=trust", "--encoding=UTF8"]
        command += ["--locale=C", "--no-sync"]
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with self._popen(command, **options) as process:
            said, _ = process.communicate()
        if process.returncode:
            shutil.rmtree(data)
            raise RuntimeError(f"initdb failed:\n{said.decode(errors='replace')}")

    def _command(self) -> Sequence[str]:
        return [program("postgres"), *(f"--{name}={self.settings[name]}" for name in self.settings)]

    def _spawn(self, **options: Any) -> subprocess.Popen[bytes]:
        return self._popen(self._command(), start_new_session=True, **options)

    def _popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """PostgreSQL refuses to run as root, and any other user can't enter pytest's temporary
        folders; but through a descriptor that it inherits, a process enters whatever it owns."""
        data = self.directory / "data"
        options["stdin"] = subprocess.DEVNULL
        user = unprivileged()
        if user is None:
            return subprocess.Popen([*command, "-D", str(data)], **options)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": (), "cwd": "/"}
        descriptor = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            where = f"/proc/self/fd/{descriptor}"
            return subprocess.Popen([*command, "-D", where], pass_fds=[descriptor], **options)
        finally:
            os.close(descriptor)

    def _ready(self) -> bool:
        return READY in self._output()


class GivenPostgres:
    """A server that runs already; databases made there are dropped again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[str] = []

    def new_database(self) -> str:
        url = create_database(self.url)
        self._made.append(urlsplit(url).path[1:])
        return url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for name in self._made:
            execute(self.url, MAY_WRITE, f"DROP DATABASE {name} WITH (FORCE)")


def create_database(url: str) -> str:
    name = f"test_{secrets.token_hex(6)}"
    execute(url, MAY_WRITE, f"CREATE DATABASE {name}")
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def execute(url: str, *statements: str) -> Any:
    """Return the value of the last statement; works in a running event loop, which it blocks."""

    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                value = await connection.fetchval(statement)
            return value
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, run()).result()


def program(name: str) -> str:
    """The path of one of PostgreSQL's programs."""
    return str(Path(provide("postgres", "PostgreSQL", find_initdb, "postgresql")).with_name(name))


def find_initdb() -> str | None:
    """Debian keeps these programs beside the path, in a folder for each version."""

    def version(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", str(path))]

    debians = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=version)
    found = shutil.which("initdb") or (str(debians[-1]) if debians else None)
    return found and os.path.realpath(found)


def unprivileged() -> pwd.struct_passwd | None:
    """Whom to run it as; None when we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
