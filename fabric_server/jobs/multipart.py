"""An incremental parser of ``multipart/form-data`` (RFC 7578).  Pure.

Fields and the file come in any order:
--boundary CRLF  headers CRLF CRLF  data  CRLF --boundary …  CRLF --boundary--
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DISPOSITION = re.compile(rb"\bcontent-disposition:\s*form-data\s*;([^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(rb'(?:^|[;\s])(name|filename)="((?:[^"\\]|\\.)*)"')
_BOUNDARY = re.compile(rb'\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
MAX_HEAD = 8 * 1024
MAX_FIELD = 4 * 1024
MAX_PARTS = 16


class MultipartError(Exception):
    """A body that is not valid; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class FileBegun:
    """A file's head; its bytes follow."""

    name: str
    filename: str


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary.  Raises ``MultipartError``."""
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith(b"multipart/form-data") or found is None:
        raise MultipartError("the request must be multipart/form-data, with a boundary")
    return found[1] or found[2]


class Multipart:
    """Parses a body: ``feed`` returns files in pieces, ``fields`` has the complete fields."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.complete = False
        self._mark = b"\r\n--" + boundary
        self._data = bytearray(b"\r\n")  # the first boundary has no line end before it
        self._state = "preamble"
        self._name = ""
        self._parts = 0
        self._field = bytearray()

    def feed(self, data: bytes) -> list[FileBegun | bytes]:
        """Parse more bytes; return the files' heads and bytes.  Raises ``MultipartError``."""
        self._data += data
        events: list[FileBegun | bytes] = []
        while not self.complete and self._step(events):
            pass
        return events

    def _step(self, events: list[FileBegun | bytes]) -> bool:
        """Parse one element; tell whether there may be another."""
        if self._state == "head":
            return self._read_head(events)
        if self._state == "boundary":
            return self._read_boundary()
        at = self._data.find(self._mark)
        # What may be the beginning of a boundary waits for more bytes.
        end = at if at >= 0 else max(0, len(self._data) - len(self._mark) + 1)
        self._take(bytes(self._data[:end]), events)
        if at < 0:
            del self._data[:end]
            return False
        del self._data[: at + len(self._mark)]
        if self._state == "field":
            self.fields[self._name] = self._field.decode("utf-8", "replace")
        self._state = "boundary"
        return True

    def _take(self, data: bytes, events: list[FileBegun | bytes]) -> None:
        if self._state == "file" and data:
            events.append(data)
        elif self._state == "field":
            self._field += data
            if len(self._field) > MAX_FIELD:
                raise MultipartError(f"the field '{self._name}' is too long")
        elif self._state == "preamble" and data.strip():
            raise MultipartError("the body does not begin with its boundary")

    def _read_boundary(self) -> bool:
        if len(self._data) < 2:
            return False
        if self._data.startswith(b"--"):
            self.complete = True
            return False
        if not self._data.startswith(b"\r\n"):
            raise MultipartError("a boundary is not followed by a line end")
        del self._data[:2]
        self._state = "head"
        return True

    def _read_head(self, events: list[FileBegun | bytes]) -> bool:
        at = self._data.find(b"\r\n\r\n")
        if at < 0 or at > MAX_HEAD:
            if len(self._data) > MAX_HEAD:
                raise MultipartError("a part's head is too long")
            return False
        head = bytes(self._data[:at])
        del self._data[: at + 4]
        found = _DISPOSITION.search(head)
        names = dict(_PARAMETER.findall(found[1])) if found else {}
        if b"name" not in names:
            raise MultipartError("a part has no name")
        self._name = _text(names[b"name"])
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MultipartError(f"there are more than {MAX_PARTS} parts")
        if b"filename" in names:
            self._state = "file"
            events.append(FileBegun(self._name, _text(names[b"filename"])))
        else:
            self._state = "field"
            self._field.clear()
        return True


def _text(quoted: bytes) -> str:
    return re.sub(rb"\\(.)", rb"\1", quoted).decode("utf-8", "replace")
