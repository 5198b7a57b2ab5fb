"""Extras of the distribution: packages that are installed only where they are needed.

The wheel alone has what a node needs.  Its extra ``server`` adds what every server needs, ``acme``
the client of certificate authorities, ``full`` all of it and the clients of PostgreSQL, Redis and
Kafka.  Modules that import a package of an extra are imported where their use begins, inside
``needed_by``.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from runtime.errors import BackendError
from runtime.version import VERSION

EXTRAS = {
    "prometheus_client": "server",
    "acme": "acme",
    "josepy": "acme",
    "requests": "acme",
    "aiokafka": "full",
    "asyncpg": "full",
    "redis": "full",
}
"""The smallest extra with each package, by the name that is imported."""


class MissingExtra(BackendError):
    """A package that an extra would have brought is not installed; ``str()`` says how to get it."""


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Raise ``MissingExtra`` if an import in the block lacks a package of an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingExtra(_advice(what, package)) from error


def require(package: str, what: str) -> None:
    """Raise ``MissingExtra`` if ``what`` lacks a package of an extra; imports nothing."""
    if find_spec(package) is None:
        raise MissingExtra(_advice(what, package))


def _advice(what: str, package: str) -> str:
    extra = EXTRAS[package]
    wheel = f"'./inference_fabric-{VERSION}-py3-none-any.whl[{extra}]'"
    return (
        f"{what} needs the package {package}, which is not installed here: "
        f"install the wheel again with its extra '{extra}': {_installer()} {wheel}"
    )


def _installer() -> str:
    """Return the command that installed this environment, as far as a package follows it."""
    if Path(sys.prefix, "uv-receipt.toml").exists():
        return "uv tool install --force"
    if Path(sys.prefix, "pipx_metadata.json").exists():
        return "pipx install --force"
    return f"{shlex.quote(sys.executable)} -m pip install"
