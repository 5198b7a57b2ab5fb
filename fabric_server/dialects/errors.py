"""The errors that the fabric itself makes, in words; ``shapes.py`` has how each dialect puts them.

An engine's own pass untouched.
"""

from __future__ import annotations

from fabric_server.dialects.error_formats import Dialect, error_body, error_event

RATE_LIMITED = "rate_limit_exceeded"
_MAY_HELP = frozenset({408, 409, 429})
"""Of the 4xx, those after which clients try again."""


class ApiError(Exception):
    """A request answered by us rather than by an engine.

    ``retry_after`` is in seconds and becomes the Retry-After header; None leaves it out.
    ``close`` asks the edge to close the connection after the answer, because what is left of the
    request can't be read any more.  ``to_ollama`` is what Ollama would say, where its clients read
    the words.  ``headers`` go with the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        retry_after: float | None = None,
        allow: str | None = None,
        close: bool = False,
        to_ollama: str | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.type = type
        self.param = param
        self.retry_after = retry_after
        self.allow = allow
        self.close = close
        self.to_ollama = to_ollama
        self.headers = headers or []

    @property
    def again(self) -> bool | None:
        """Whether the same request may do better later; None leaves that to the client."""
        if 400 <= self.status < 500 and self.status not in _MAY_HELP:
            return False
        return True if self.status == 503 else None  # nothing was done yet

    def body(self, dialect: Dialect = Dialect.OPENAI, request_id: str = "") -> bytes:
        words = self.message
        if dialect is Dialect.OLLAMA and self.to_ollama is not None:
            words = self.to_ollama
        return error_body(
            dialect,
            self.status,
            words,
            type=self.type,
            code=self.code,
            param=self.param,
            request_id=request_id,
        )

    def event(self, dialect: Dialect, request_id: str = "", after: bytes = b"") -> bytes:
        """As part of a stream, ``after`` its last events so far."""
        event = error_event(dialect, self.body(dialect, request_id), after)
        assert event is not None
        return event


def no_key() -> ApiError:
    return ApiError(
        401,
        "invalid_api_key",
        "No API key was given. Send it as 'Authorization: Bearer sk-fab-…' or 'x-api-key: …'.",
        type="authentication_error",
    )


def key_withdrawn() -> ApiError:
    """While the request was under way."""
    return ApiError(
        401,
        "key_withdrawn",
        "This API key was revoked or disabled.",
        type="authentication_error",
    )


def cancelled() -> ApiError:
    """By the operator.  No status that clients try again after."""
    return ApiError(403, "cancelled_by_operator", "The operator has ended this request.")


def ledger_full() -> ApiError:
    return ApiError(
        503,
        "ledger_full",
        "Requests can't be accounted for at the moment. Try again shortly.",
        type="server_error",
        retry_after=10.0,
    )


def wrong_key() -> ApiError:
    return ApiError(
        401,
        "invalid_api_key",
        "This API key is not known here, was revoked, or has expired.",
        type="authentication_error",
    )


def key_disabled() -> ApiError:
    """Told apart from a wrong key, because whoever has all of it may know; clients that stop at
    ``invalid_api_key`` are right to stop."""
    return ApiError(
        401,
        "invalid_api_key",
        "This API key is disabled. Whoever gave it to you can enable it again.",
        type="authentication_error",
    )


def account_disabled() -> ApiError:
    """With OpenAI's code for it."""
    return ApiError(
        401,
        "account_deactivated",
        "The account of this API key is disabled. Whoever gave it to you can enable it again.",
        type="authentication_error",
    )


def wrong_kind_of_key(needed: str) -> ApiError:
    return ApiError(
        403,
        "wrong_key_kind",
        f"This key can't be used here: {needed} is needed.",
        type="permission_error",
    )


def model_not_allowed(model: str) -> ApiError:
    return ApiError(
        403,
        "model_not_allowed",
        f"This key may not use the model '{model}'.",
        type="permission_error",
        param="model",
    )


def model_not_found(model: str) -> ApiError:
    return ApiError(
        404,
        "model_not_found",
        f"The model '{model}' does not exist here. GET /v1/models lists those that do.",
        param="model",
        to_ollama=f"model '{model}' not found",
    )


def path_not_supported(model: str, path: str, others: str) -> ApiError:
    """The model is here, but no engine that serves it can be asked this."""
    return ApiError(
        404,
        "path_not_supported",
        f"The model '{model}' can't be asked on {path}. It can be on: {others}.",
        param="model",
    )


def rate_limited(
    what: str, limit: int, retry_after: float, headers: list[tuple[bytes, bytes]]
) -> ApiError:
    """``what`` is ``requests`` or ``tokens``: OpenAI's type of this error."""
    return ApiError(
        429,
        RATE_LIMITED,
        f"This key may use {limit} {what} a minute. Try again in {retry_after:.3g} s.",
        type=what,
        retry_after=retry_after,
        headers=headers,
    )


def managed_elsewhere() -> ApiError:
    return ApiError(
        403,
        "models_not_managed_here",
        "Models are managed by the nodes' owners, not over this API.",
    )


def no_capacity(model: str, retry_after: float, regions: frozenset[str] | None = None) -> ApiError:
    """``regions`` are the only ones that its user allows."""
    where = ""
    if regions is not None:
        where = f" in {' or '.join(sorted(regions))}, as x-fabric-region demands,"
    return ApiError(
        503,
        "no_capacity",
        f"No node{where} that serves '{model}' can take a request now. Try again shortly.",
        type="server_error",
        param=None if regions is None else "x-fabric-region",
        retry_after=retry_after,
    )


def unknown_path(path: str, meant: str | None = None) -> ApiError:
    hint = f" Did you mean {meant}? Then your client's base URL is wrong." if meant else ""
    return ApiError(404, "unknown_path", f"There is nothing at {path}.{hint}")


def wrong_method(method: str, path: str, allow: str) -> ApiError:
    return ApiError(
        405,
        "method_not_allowed",
        f"{method} is not possible on {path}; {allow} is.",
        allow=allow,
    )


def unreadable_encoding(coding: str) -> ApiError:
    return ApiError(
        415,
        "unsupported_encoding",
        f"A request body with content-encoding '{coding}' can't be read here. Send it as it is.",
        param="content-encoding",
        headers=[(b"accept-encoding", b"identity")],  # RFC 9110, 12.5.3
    )


def bad_json(detail: str) -> ApiError:
    return ApiError(400, "invalid_json", f"The request body can't be read: {detail}.")


def bad_request_body(message: str) -> ApiError:
    return ApiError(400, "invalid_body", message)


def bad_field(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "bad_request", message, close=True)


def body_too_large(limit: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"The request body is larger than {limit} bytes.", close=True
    )


def headers_too_large(message: str) -> ApiError:
    return ApiError(431, "headers_too_large", message, close=True)


def too_slow(what: str) -> ApiError:
    return ApiError(408, "request_timeout", f"The request's {what} came too slowly.", close=True)


def upstream_error(message: str) -> ApiError:
    return ApiError(502, "upstream_error", message, type="server_error")


def upstream_timeout(seconds: float) -> ApiError:
    return ApiError(
        504,
        "upstream_timeout",
        f"The model did not begin its answer within {seconds:g} s.",
        type="server_error",
    )


def overloaded(message: str, retry_after: float) -> ApiError:
    return ApiError(503, "overloaded", message, type="server_error", retry_after=retry_after)


def queue_full(model: str, retry_after: float) -> ApiError:
    """Because of everybody's requests."""
    return overloaded(f"Too many requests wait for '{model}'.", retry_after)


def queue_share_full(model: str, retry_after: float) -> ApiError:
    """Because of this key's own."""
    return ApiError(
        429,
        "queue_share_full",
        f"Too many requests of this key wait for '{model}'.",
        type="rate_limit_error",
        retry_after=retry_after,
    )


def queue_timeout(model: str, retry_after: float) -> ApiError:
    return ApiError(
        503,
        "queue_timeout",
        f"No slot for '{model}' became free in the time that the request could wait.",
        type="server_error",
        retry_after=retry_after,
    )
