"""What users are told when the store can't."""

from __future__ import annotations

import logging

from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler, Router
from runtime.errors import BackendError, RecordError

log = logging.getLogger("fabric.jobs")


class StoreErrors:
    """Adds handlers to the public port's table that ask the store."""

    def __init__(self, public: Router) -> None:
        self._public = public

    def add(self, method: str, path: str, handler: Handler) -> None:
        async def guarded(request: Request) -> None:
            try:
                await handler(request)
            except RecordError:
                words = "The request names something that can't be stored."
                raise ApiError(400, "invalid_value", words) from None
            except BackendError as error:
                log.warning("request refused", extra={"request": request.id, "reason": str(error)})
                raise _away() from None

        self._public.add(method, path, guarded)


def _away() -> ApiError:
    return ApiError(
        503,
        "store_unavailable",
        "Jobs, files and batches can't be reached at the moment. Try again shortly.",
        type="server_error",
        retry_after=5.0,
    )
