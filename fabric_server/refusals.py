"""The errors that the fabric itself makes, in OpenAI's shape.  An engine's own pass untouched."""

from __future__ import annotations

import msgspec

_encode = msgspec.json.Encoder().encode


class Refusal(Exception):
    """A request answered by us rather than by an engine.

    ``retry_after`` is in seconds and becomes the Retry-After header; None leaves it out.
    ``close`` asks the edge to close the connection after the answer, because what is left of the
    request can't be read any more.
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

    def body(self) -> bytes:
        return _encode(
            {
                "error": {
                    "message": self.message,
                    "type": self.type,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )


def no_key() -> Refusal:
    return Refusal(
        401,
        "invalid_api_key",
        "No API key was given. Send it as 'Authorization: Bearer sk-fab-…'.",
        type="authentication_error",
    )


def key_withdrawn() -> Refusal:
    """While the request was under way."""
    return Refusal(
        401,
        "key_withdrawn",
        "This API key was revoked or disabled.",
        type="authentication_error",
    )


def cancelled() -> Refusal:
    """By the operator.  No status that clients try again after."""
    return Refusal(403, "cancelled_by_operator", "The operator has ended this request.")


def ledger_full() -> Refusal:
    return Refusal(
        503,
        "ledger_full",
        "Requests can't be accounted for at the moment. Try again shortly.",
        type="server_error",
        retry_after=10.0,
    )


def wrong_key() -> Refusal:
    return Refusal(
        401,
        "invalid_api_key",
        "This API key is not known here, was revoked, or has expired.",
        type="authentication_error",
    )


def key_disabled() -> Refusal:
    """Told apart from a wrong key, because whoever has all of it may know; clients that stop at
    ``invalid_api_key`` are right to stop."""
    return Refusal(
        401,
        "invalid_api_key",
        "This API key is disabled. Whoever gave it to you can enable it again.",
        type="authentication_error",
    )


def account_disabled() -> Refusal:
    """With OpenAI's code for it."""
    return Refusal(
        401,
        "account_deactivated",
        "The account of this API key is disabled. Whoever gave it to you can enable it again.",
        type="authentication_error",
    )


def wrong_kind_of_key(needed: str) -> Refusal:
    return Refusal(
        403,
        "wrong_key_kind",
        f"This key can't be used here: {needed} is needed.",
        type="permission_error",
    )


def model_not_allowed(model: str) -> Refusal:
    return Refusal(
        403,
        "model_not_allowed",
        f"This key may not use the model '{model}'.",
        type="permission_error",
        param="model",
    )


def model_not_found(model: str) -> Refusal:
    return Refusal(
        404,
        "model_not_found",
        f"The model '{model}' does not exist here. GET /v1/models lists those that do.",
        param="model",
    )


def no_capacity(model: str, retry_after: float) -> Refusal:
    return Refusal(
        503,
        "no_capacity",
        f"No node that serves '{model}' can take a request now. Try again shortly.",
        type="server_error",
        retry_after=retry_after,
    )


def unknown_path(path: str) -> Refusal:
    return Refusal(404, "unknown_path", f"There is nothing at {path}.")


def wrong_method(method: str, path: str, allow: str) -> Refusal:
    return Refusal(
        405,
        "method_not_allowed",
        f"{method} is not possible on {path}; {allow} is.",
        allow=allow,
    )


def bad_json(detail: str) -> Refusal:
    return Refusal(400, "invalid_json", f"The request body can't be read: {detail}.")


def bad_field(param: str, message: str) -> Refusal:
    return Refusal(400, "invalid_value", message, param=param)


def bad_request(message: str) -> Refusal:
    return Refusal(400, "bad_request", message, close=True)


def body_too_large(limit: int) -> Refusal:
    return Refusal(
        413, "body_too_large", f"The request body is larger than {limit} bytes.", close=True
    )


def headers_too_large(message: str) -> Refusal:
    return Refusal(431, "headers_too_large", message, close=True)


def too_slow(what: str) -> Refusal:
    return Refusal(408, "request_timeout", f"The request's {what} came too slowly.", close=True)


def upstream_error(message: str) -> Refusal:
    return Refusal(502, "upstream_error", message, type="server_error")


def upstream_timeout(seconds: float) -> Refusal:
    return Refusal(
        504,
        "upstream_timeout",
        f"The model did not begin its answer within {seconds:g} s.",
        type="server_error",
    )


def overloaded(message: str, retry_after: float) -> Refusal:
    return Refusal(503, "overloaded", message, type="server_error", retry_after=retry_after)


def queue_full(model: str, retry_after: float) -> Refusal:
    """Because of everybody's requests."""
    return overloaded(f"Too many requests wait for '{model}'.", retry_after)


def queue_share_full(model: str, retry_after: float) -> Refusal:
    """Because of this key's own."""
    return Refusal(
        429,
        "queue_share_full",
        f"Too many requests of this key wait for '{model}'.",
        type="rate_limit_error",
        retry_after=retry_after,
    )


def queue_timeout(model: str, retry_after: float) -> Refusal:
    return Refusal(
        503,
        "queue_timeout",
        f"No slot for '{model}' became free in the time that the request could wait.",
        type="server_error",
        retry_after=retry_after,
    )
