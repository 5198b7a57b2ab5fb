"""The directory of a server, ``data``: whether it is one, and the addresses remembered in it.

<data>/server.json   the addresses of the last ``up`` or ``init`` that was given some
<data>/certs         the CA and the server's certificate (``pki.certificates``)
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from runtime.files import write
from runtime.settings import SettingsError

NAME = "server.json"


class Remembered(Struct, frozen=True):
    """``server.json``."""

    address: tuple[str, ...] = ()
    """Empty when none was given: then it is this machine's own."""


def has_authority(data: Path) -> bool:
    """Return whether a server has made its CA in this directory.  Raises ``SettingsError``."""
    path = data / "certs" / "ca.pem"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from None
    return True


def remembered_addresses(data: Path) -> tuple[str, ...] | None:
    """Return the addresses, None if none were ever remembered.  Raises ``SettingsError``."""
    path = data / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Remembered).address
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError) as error:  # msgspec's errors are among the former
        raise SettingsError(
            f"{path} is damaged ({error}): remove it, and give the server's names with --address."
        ) from None


def remember_addresses(data: Path, addresses: tuple[str, ...]) -> None:
    """Remember the addresses for starts without any.  Raises ``SettingsError``."""
    path = data / NAME
    try:
        write(path, msgspec.json.encode(Remembered(addresses)).decode() + "\n")
    except OSError as error:
        raise SettingsError(
            f"{path} can't be written ({error.strerror or error}): run as its owner, or as root."
        ) from None


def _unreadable(path: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"{path} can't be read ({error.strerror or error}): run as the server's user, or as root."
    )
