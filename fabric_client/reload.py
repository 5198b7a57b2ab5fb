"""Reads a running node's settings again: when their file has changed, or when it is asked to.

A file with an error changes nothing.  Flags and variables stay those of the start.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

from fabric_client.config import Config
from fabric_client.owner.state import Reloaded
from runtime.flags import file_of, merge, read_again
from runtime.settings import Conflict, SettingsError

log = logging.getLogger("fabric.settings")

AT_ONCE = frozenset(
    {
        *("name", "region", "discover", "slots", "models", "schedule", "max_num_ctx"),
        *("engine", "engine_key_file"),  # together: a key belongs to the engine at its place
        *("pause_on_battery", "pause_gpu_percent", "pause_gpu_seconds", "upload_limit"),
        *("log_level", "log_json"),
    }
)
"""Settings that take effect while the node runs."""


class NodeSettings:
    """The settings of a running node, and the file that they come from."""

    def __init__(self, config: Config) -> None:
        self.config = config
        """The settings in use."""
        self.result: Reloaded | None = None
        """The result of the last time that they were read again."""
        self._file = file_of(config)
        self._read = self._seen = _stamp(self._file)

    def file_has_changed(self) -> bool:
        """Return whether the file is another one than was read; it costs one ``stat``.

        A file that has changed since the last call is left alone: it may be half written.  One that
        is gone or empty stands for no wish of the owner, whose limits it would lift.
        """
        before, self._seen = self._seen, _stamp(self._file)
        if self._seen != before or self._seen == self._read:
            return False
        if self._seen is not None and self._seen.size:
            return True
        self._read = self._seen
        log.error(
            "settings file is gone or empty: the ones before stay; "
            "fabric-client reload goes back to the defaults",
            extra={"file": str(self._file)},
        )
        return False

    def read_again(self) -> Reloaded:
        """Read the settings again, and log and return what has changed in ``config``."""
        self.result = self._read_again()
        return self.result

    def _read_again(self) -> Reloaded:
        self._read = self._seen = _stamp(self._file)
        try:
            loaded = read_again(self.config)
        except SettingsError as error:
            log.error("settings not read again: the ones before stay", extra={"reason": str(error)})
            return Reloaded(error=str(error))
        changed = [
            field.name
            for field in dataclasses.fields(loaded)
            if getattr(loaded, field.name) != getattr(self.config, field.name)
        ]
        result = Reloaded(
            applied=[name for name in changed if name in AT_ONCE],
            needs_restart=[name for name in changed if name not in AT_ONCE],
        )
        try:
            self.config = merge(self.config, loaded, result.applied)
        except Conflict as error:
            log.error("settings not applied: restart the node", extra={"reason": str(error)})
            return Reloaded(error=f"{error} Restart the node to use the new settings together.")
        log.info(
            "settings loaded",
            extra={"applied": result.applied, "needs_restart": result.needs_restart},
        )
        return result


class _Stamp(NamedTuple):
    """The version of a file, as its directory tells it."""

    modified: int
    inode: int
    size: int


def _stamp(file: Path | None) -> _Stamp | None:
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return _Stamp(status.st_mtime_ns, status.st_ino, status.st_size)
