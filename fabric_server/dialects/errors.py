"""The errors that the fabric itself answers with; ``error_formats`` puts them into each dialect.

Nodes have put an engine's own errors into the dialect; they pass untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

from fabric_server.dialects.error_formats import Dialect, error_body, error_event

RATE_LIMITED = "rate_limit_exceeded"
VARIANT_NOT_FOUND = "variant_not_found"
_RETRYABLE = frozenset({408, 409, 429})
"""Statuses among the 4xx after which clients retry."""


class ApiError(Exception):
    """An error that the fabric itself answers a request with.

    ``code``, ``type`` and ``param`` are as in OpenAI's API.  ``retry_after`` is in seconds and
    becomes the Retry-After header; None leaves it out.  The attributes below are set afterwards,
    on the few errors that need them.
    """

    headers: list[tuple[bytes, bytes]]
    """Further headers of the answer."""
    allow: str | None = None
    """The Allow header, for status 405."""
    close: bool = False
    """Close the connection after the answer: the rest of the request can't be read any more."""
    ollama_message: str | None = None
    """Ollama's own wording, where its clients read the text."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.type = type
        self.param = param
        self.retry_after = retry_after
        self.headers = []

    @property
    def should_retry(self) -> bool | None:
        """Return whether the same request may succeed later; None leaves that to the client."""
        if 400 <= self.status < 500 and self.status not in _RETRYABLE:
            return False
        return True if self.status == 503 else None  # nothing was done yet

    def body(self, dialect: Dialect = Dialect.OPENAI, request_id: str = "") -> bytes:
        return error_body(dialect, self, request_id)

    def event(self, dialect: Dialect, request_id: str = "", after: bytes = b"") -> bytes:
        """Return the error as part of a stream, ``after`` its last events so far."""
        event = error_event(dialect, self.body(dialect, request_id), after)
        assert event is not None
        return event


def closing(error: ApiError) -> ApiError:
    """Mark ``error`` as one after which the connection is closed."""
    error.close = True
    return error


def no_key() -> ApiError:
    return ApiError(
        401,
        "invalid_api_key",
        "No API key provided. Send it as 'Authorization: Bearer sk-fab-…', 'x-api-key: …' or"
        " 'api-key: …'.",
        type="authentication_error",
    )


def key_withdrawn() -> ApiError:
    """Return the error for a key that was revoked or disabled while the request was running."""
    return ApiError(
        401,
        "key_withdrawn",
        "This API key was revoked or disabled.",
        type="authentication_error",
    )


def cancelled() -> ApiError:
    """Return the error for a request that the operator cancelled; clients do not retry a 403."""
    return ApiError(403, "cancelled_by_operator", "The operator cancelled this request.")


def ledger_full() -> ApiError:
    return ApiError(
        503,
        "ledger_full",
        "The usage ledger is full; retry in 10 s.",
        type="server_error",
        retry_after=10.0,
    )


def wrong_key() -> ApiError:
    return ApiError(
        401,
        "invalid_api_key",
        "Invalid API key: it is unknown, revoked or expired.",
        type="authentication_error",
    )


def key_disabled() -> ApiError:
    """Return the error for a disabled key.

    Only somebody who has the whole key sees that it differs from an unknown one; the code is the
    same, because clients that stop at ``invalid_api_key`` are right to stop.
    """
    return ApiError(
        401,
        "invalid_api_key",
        "This API key is disabled. Ask whoever issued it to enable it.",
        type="authentication_error",
    )


def account_disabled() -> ApiError:
    """Return the error for a disabled account, with OpenAI's code for it."""
    return ApiError(
        401,
        "account_deactivated",
        "The account of this API key is disabled. Ask whoever issued the key to enable it.",
        type="authentication_error",
    )


def wrong_kind_of_key(needed: str) -> ApiError:
    return ApiError(
        403,
        "wrong_key_kind",
        f"This kind of API key can't be used here: {needed} is required.",
        type="permission_error",
    )


def out_of_scope(scopes: Sequence[str]) -> ApiError:
    return ApiError(
        403,
        "out_of_scope",
        f"This management key may only do what its scopes allow: {', '.join(scopes)}.",
        type="permission_error",
    )


def model_not_allowed(model: str) -> ApiError:
    return ApiError(
        403,
        "model_not_allowed",
        f"This API key is not allowed to use the model '{model}'.",
        type="permission_error",
        param="model",
    )


def model_not_found(model: str) -> ApiError:
    error = ApiError(
        404,
        "model_not_found",
        f"The model '{model}' does not exist. GET /v1/models lists the available models.",
        param="model",
    )
    error.ollama_message = f"model '{model}' not found"
    return error


def path_not_supported(model: str, path: str, others: str) -> ApiError:
    """Return the error for a model whose engines do not support the path."""
    return ApiError(
        404,
        "path_not_supported",
        f"The model '{model}' does not support {path}. Supported: {others}.",
        param="model",
    )


def rate_limited(
    what: str, limit: int, retry_after: float, headers: list[tuple[bytes, bytes]]
) -> ApiError:
    """Return the error for a key over its limit; ``what`` is ``requests`` or ``tokens``.

    OpenAI uses the same word as the error's type.
    """
    error = ApiError(
        429,
        RATE_LIMITED,
        f"Rate limit reached: this key has {limit} {what} per minute."
        f" Retry in {retry_after:.3g} s.",
        type=what,
        retry_after=retry_after,
    )
    error.headers = headers
    return error


def too_many_at_once(limit: int, retry_after: float) -> ApiError:
    """Return the error for a key that has as many requests under way as it may have."""
    return ApiError(
        429,
        RATE_LIMITED,
        f"Rate limit reached: this key may have {limit} requests at once."
        " Wait until one has ended.",
        type="requests",
        retry_after=retry_after,
    )


def managed_elsewhere() -> ApiError:
    return ApiError(
        403,
        "models_not_managed_here",
        "Models are managed by the owners of the nodes, not through this API.",
    )


def variant_not_found(model: str, wanted: str, served: str, param: str) -> ApiError:
    """Return the error for weights of a model that no node has; ``served`` are those there are."""
    return ApiError(
        404,
        VARIANT_NOT_FOUND,
        f"No node serves '{model}' with {wanted} (set by {param}). Served: {served}.",
        param=param,
    )


def no_capacity(
    model: str,
    retry_after: float,
    regions: frozenset[str] | None = None,
    variant: str = "",
    *,
    why: str = "",
) -> ApiError:
    """Return the error for a model without a free node; ``regions`` are those its user allows,
    ``variant`` the weights asked for, and ``why`` a clause that tells the reason."""
    where = ""
    if regions is not None:
        where = f" in {' or '.join(sorted(regions))} (set by x-fabric-region)"
    what = f" with {variant}" if variant else ""
    return ApiError(
        503,
        "no_capacity",
        f"No node{where} serving '{model}'{what} can take a request now"
        + (f": {why}." if why else ". Retry shortly."),
        type="server_error",
        param=None if regions is None else "x-fabric-region",
        retry_after=retry_after,
    )


def unknown_path(path: str, meant: str | None = None) -> ApiError:
    hint = f" Did you mean {meant}? Check your client's base URL." if meant else ""
    return ApiError(404, "unknown_path", f"Unknown path {path}.{hint}")


def wrong_method(method: str, path: str, allow: str) -> ApiError:
    error = ApiError(
        405, "method_not_allowed", f"Method {method} not allowed on {path}. Allowed: {allow}."
    )
    error.allow = allow
    return error


def unreadable_encoding(coding: str) -> ApiError:
    error = ApiError(
        415,
        "unsupported_encoding",
        f"Content-Encoding '{coding}' is not supported in requests. Send the body uncompressed.",
        param="content-encoding",
    )
    error.headers = [(b"accept-encoding", b"identity")]  # RFC 9110, 12.5.3
    return error


def bad_json(detail: str) -> ApiError:
    return ApiError(400, "invalid_json", f"The request body is not valid JSON: {detail}.")


def not_an_object() -> ApiError:
    return bad_field("body", "The request body must be a JSON object.")


def bad_request_body(message: str) -> ApiError:
    return ApiError(400, "invalid_body", message)


def bad_field(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param=param)


def bad_request(message: str) -> ApiError:
    return closing(ApiError(400, "bad_request", message))


def body_too_large(limit: int) -> ApiError:
    return closing(
        ApiError(413, "body_too_large", f"The request body is larger than {limit} bytes.")
    )


def headers_too_large(message: str) -> ApiError:
    return closing(ApiError(431, "headers_too_large", message))


def too_slow(what: str) -> ApiError:
    return closing(ApiError(408, "request_timeout", f"The request's {what} arrived too slowly."))


def upstream_error(message: str) -> ApiError:
    return ApiError(502, "upstream_error", message, type="server_error")


def engine_refused(status: int) -> ApiError:
    """Return the error for an engine's status that is about its node, not about the client."""
    return upstream_error(
        f"The node's engine refused to serve the fabric (status {status})."
        " Neither your API key nor your request is the cause. Retry; other nodes may serve it."
    )


def upstream_timeout(seconds: float) -> ApiError:
    return ApiError(
        504,
        "upstream_timeout",
        f"The model did not start to answer within {seconds:g} s.",
        type="server_error",
    )


def answer_timeout(reason: str) -> ApiError:
    """Return the error for an answer that is cut because time is up, its node being there."""
    message = f"The answer was cut in its middle: {reason}."
    return ApiError(504, "upstream_timeout", message, type="server_error")


def overloaded(message: str, retry_after: float) -> ApiError:
    return ApiError(503, "overloaded", message, type="server_error", retry_after=retry_after)


def too_much_held(limit: int, retry_after: float) -> ApiError:
    """Return the error for a key whose requests under way hold as much memory as it may have."""
    return ApiError(
        429,
        "too_much_in_flight",
        f"The requests of this key that are under way have {limit >> 20} MiB of data together, the"
        " most that one key may have. Wait for some of their answers.",
        type="rate_limit_error",
        retry_after=retry_after,
    )


def queue_full(model: str, retry_after: float) -> ApiError:
    """Return the error for a queue that the requests of all keys fill."""
    return overloaded(f"The queue for '{model}' is full.", retry_after)


def queue_share_full(model: str, retry_after: float) -> ApiError:
    """Return the error for a queue of which this key fills its share."""
    return ApiError(
        429,
        "queue_share_full",
        f"Too many requests of this key are waiting for '{model}'.",
        type="rate_limit_error",
        retry_after=retry_after,
    )


def queue_timeout(model: str, retry_after: float, *, reachable: bool = True) -> ApiError:
    """Return the error for a request that has waited to its end.

    ``reachable``: a node with the model has a tunnel, so that it was a free slot that was missing.
    """
    what = f"a free slot for '{model}'" if reachable else f"a connection to what serves '{model}'"
    return ApiError(
        503,
        "queue_timeout",
        f"Timed out waiting for {what}.",
        type="server_error",
        retry_after=retry_after,
    )
