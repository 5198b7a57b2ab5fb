"""Reads a running node's settings again when their file has changed.

What is offered changes at once.  Every other setting needs a restart, which is logged.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from fabric_client.config import Config
from fabric_client.offer.patterns import Offer
from runtime.flags import file_of, read_again
from runtime.settings import SettingsError

log = logging.getLogger("fabric.settings")

AT_ONCE = frozenset({"models"})
"""Settings that take effect while the node runs."""


class SettingsWatch:
    """The settings file as a running node sees it.

    ``poll`` costs one ``stat`` when nothing changed.
    """

    def __init__(self, config: Config, joined_with: Sequence[str] | None) -> None:
        """``joined_with`` are the patterns that ``join`` was given."""
        self._config = config
        self._joined_with = joined_with
        self._file = file_of(config)
        self._seen = _stamp(self._file)

    def poll(self) -> Offer | None:
        """Return what is offered if the file has changed that, otherwise None.

        A file with an error is logged once, and changes nothing.
        """
        seen = _stamp(self._file)
        if seen == self._seen:
            return None
        self._seen = seen
        before = self._config
        try:
            self._config = read_again(before)
        except SettingsError as error:
            log.error("settings not read again: the ones before stay", extra={"reason": str(error)})
            return None
        changed = {
            field.name
            for field in dataclasses.fields(before)
            if getattr(before, field.name) != getattr(self._config, field.name)
        }
        if waiting := sorted(changed - AT_ONCE):
            log.warning(
                "settings changed: restart the node to apply them", extra={"names": waiting}
            )
        return self._config.offers(self._joined_with) if "models" in changed else None


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
