"""A small file says where an installed service has its data; the commands of a shell read it.

    ~/.config/fabric/<program>.data   of the user's own service
    /etc/fabric/<program>.data        of the machine's service; %ProgramData%\\fabric on Windows

The file holds one line, the absolute path.  ``install-service`` writes it, ``uninstall-service``
removes it, and it is the default of the setting ``data``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runtime.settings import SettingsError


def user_folder() -> Path:
    """Return the folder of the user's files of this kind."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home())) / "fabric"
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".config") / "fabric"


def system_folder() -> Path:
    """Return the folder of the machine's files of this kind."""
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", "C:/ProgramData")) / "fabric"
    return Path("/etc/fabric")


def file_of(program: str, folder: Path) -> Path:
    """Return the path of the file that names the data of ``program``."""
    return folder / f"{program}.data"


def data_of_service(program: str, *folders: Path) -> Path | None:
    """Return the data directory of the installed service; None if none is installed.

    The first of ``folders`` that names one counts; without any, the user's and the machine's.
    Raises ``SettingsError`` for a file that names none.
    """
    for folder in folders or (user_folder(), system_folder()):
        path = file_of(program, folder)
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"{path}, which names the data of the installed service, can't be read "
                f"({getattr(error, 'strerror', None) or error}): set --data."
            ) from None
        if not text.isprintable() or not Path(text).is_absolute():
            raise SettingsError(
                f"{path} must hold one absolute path, the data of the installed service: run "
                "'install-service' again, or set --data."
            )
        return Path(text)
    return None
