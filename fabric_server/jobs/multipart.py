"""An incremental parser of ``multipart/form-data`` (RFC 7578).  Pure.

Fields and the file come in any order:
--boundary CRLF  headers CRLF CRLF  data  CRLF --boundary …  CRLF --boundary--
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.form_headers import FormError, read_boundary, read_charset, read_disposition

_DISPOSITION = re.compile(rb"(?:^|\r\n)content-disposition:([^\r\n]*)", re.IGNORECASE)
_TYPE = re.compile(rb"(?:^|\r\n)content-type:([^\r\n]*)", re.IGNORECASE)
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
    try:
        return read_boundary(content_type.decode("latin-1").strip()).encode()
    except FormError as error:
        raise MultipartError(str(error)) from None


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
        self._charset = "utf-8"

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
            self.fields[self._name] = self._field.decode(self._charset, "replace")
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
        found, types = _DISPOSITION.findall(head), _TYPE.findall(head)
        if len(found) != 1:
            raise MultipartError("each part needs one content-disposition")
        try:
            self._name, filename = read_disposition(found[0].decode("utf-8", "replace").strip())
            if filename is None:
                self._charset = read_charset(types[0].decode("latin-1").strip() if types else "")
        except FormError as error:
            raise MultipartError(str(error)) from None
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MultipartError(f"there are more than {MAX_PARTS} parts")
        if filename is not None:
            self._state = "file"
            events.append(FileBegun(self._name, filename))
        else:
            self._state = "field"
            self._field.clear()
        return True
