"""Questions to an engine about itself: small requests, bounded in time and bytes."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import aiohttp
import msgspec

from fabric_client.engines.addresses import Address
from fabric_client.engines.engine_key import EngineKey, EngineKeyError

MAX_BYTES = 4 * 2**20
"""The most that is read of an answer."""


class ProbeError(Exception):
    """The engine gave no facts.

    ``slow``: it may just be busy; ``unfit``: another kind of engine, or none, answers there;
    ``locked``: it wants a key.
    """

    def __init__(
        self, sentence: str, *, slow: bool = False, unfit: bool = False, locked: bool = False
    ) -> None:
        super().__init__(sentence)
        self.slow = slow
        self.unfit = unfit
        self.locked = locked


class Response(NamedTuple):
    status: int
    server: str
    document: object
    """None for what is no JSON: several health paths return nothing, or a word."""


class Asking:
    """Asks one engine.  Sends its key, if it has one, to no other address."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: Address,
        timeout: float,
        key: EngineKey | None = None,
    ) -> None:
        """``timeout`` is the time in seconds for an answer."""
        self.key = key
        self._session = session
        self._address = address
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    def use_key(self, key: EngineKey | None) -> None:
        """Send another key from now on; one of the same file is kept, as it has been read."""
        before, self.key = self.key, key
        if before is not None and key is not None and before.file == key.file:
            self.key = before
        elif key is not None:
            with contextlib.suppress(EngineKeyError):  # the next question to the engine tells it
                key.refresh()

    async def get(self, path: str) -> Response:
        """Ask for a document.  Raises ``ProbeError``."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: object) -> Response:
        """Ask with a body.  Raises ``ProbeError``."""
        return await self._ask("POST", path, body)

    def locked(self, status: int, detail: str) -> ProbeError:
        """Return the error for an engine that answered 401 or 403."""
        url = self._address.url
        if self.key is None:
            sentence = (
                f"{url} requires an API key ({status}{detail}): write it into a file that only you "
                f"can read, and name the engine and the file with --engine and --engine-key-file."
            )
        else:
            sentence = (
                f"{url} refuses the key of its key file ({status}{detail}): write the engine's own "
                f"key into the file that engine_key_file names."
            )
        return ProbeError(sentence, locked=True)

    async def _ask(self, method: str, path: str, body: object) -> Response:
        url = self._address.url
        try:
            if self.key is not None:
                self.key.refresh()
        except EngineKeyError as error:
            raise ProbeError(str(error), locked=True) from None
        headers = {"Host": self._address.host}
        if self.key is not None:
            headers["Authorization"] = self.key.authorization
        try:
            async with self._session.request(
                method,
                url + path,
                headers=headers,
                json=body,
                timeout=self._timeout,
                # A node dials only the addresses that its owner set.
                allow_redirects=False,
            ) as response:
                data = await _read(response.content)
                return Response(response.status, response.headers.get("Server", ""), _decode(data))
        except TimeoutError:
            raise ProbeError(f"{url} did not respond in time.", slow=True) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise ProbeError(f"{url} has no trusted certificate: {error}.") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError):
                raise ProbeError(f"Nothing listens at {url}: is the engine running?") from None
            raise ProbeError(f"{url} can't be reached: {error.strerror or error}.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProbeError(
                f"{url} gave no valid response: {error or type(error).__name__}."
            ) from None


async def _read(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
    return bytes(body)


def _decode(body: bytes) -> object:
    """Parse JSON; None if it is none."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
