"""The tokens of a prompt, for clients that ask before they send it: counted, or estimated.

vLLM's /tokenize takes a conversation and counts exactly.  llama-server's takes a text: the model's
chat template adds some tokens to that, which are estimated.  For other engines all is estimated
from the prompt's length, on the node, without asking them.  An answer that is estimated says so,
in the field ``estimated`` and the header ``x-fabric-estimated``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from fabric_client.translation import Headers, LocalReply, RequestTranslator, TranslatedRequest
from fabric_client.translation.collector import BodyCollector
from fabric_client.translation.lenient_json import Json, get_text
from fabric_client.translation.local_reply import error_reply
from fabric_client.translation.validation import encode_body, parse_body

MESSAGES = "/v1/messages/count_tokens"
RESPONSES = "/v1/responses/input_tokens"
TOKENIZE = "/tokenize"
ESTIMATED = ("x-fabric-estimated", "true")
_BYTES_OF_TOKEN = 4
_TOKENS_OF_MESSAGE = 4
"""Tokens that a chat template puts around a message, of which there are three to five."""
_TOKENS_OF_MEDIA = 1000
_TOKENIZE_FIELDS = (
    *("model", "messages", "tools", "chat_template_kwargs"),
    *("add_generation_prompt", "continue_final_message"),
)

ReadPrompt = Callable[[Json], Json]
"""Takes a request, and returns the fields of the chat API that make up its prompt.  Raises
``TranslationError``."""


class Counter:
    """The ``RequestTranslator`` of a path for an engine of a kind; it can be pickled."""

    def __init__(self, path: str, read_prompt: ReadPrompt, kind: str) -> None:
        """``kind`` is the engine's, if it has /tokenize; all is estimated for any other."""
        self._path = path
        self._read_prompt = read_prompt
        self._kind = kind

    def __call__(self, body: bytes) -> TranslatedRequest | LocalReply:
        chat = self._read_prompt(parse_body(body))
        if self._kind == "vllm":
            asked = {name: chat[name] for name in _TOKENIZE_FIELDS if name in chat}
            return TranslatedRequest(TOKENIZE, encode_body(asked), CountFilter(self._path))
        texts, more = _weigh(chat)
        if self._kind == "llama-server":
            asked = {"model": chat["model"], "content": "\n".join(texts), "add_special": True}
            return TranslatedRequest(TOKENIZE, encode_body(asked), CountFilter(self._path, more))
        size = sum(len(text.encode(errors="replace")) for text in texts)
        count = more + -(-size // _BYTES_OF_TOKEN)
        return LocalReply(200, _headers(estimated=True), _answer(self._path, count, estimated=True))


class CountFilter:
    """``fabric_client.translation.ResponseFilter`` of an engine's /tokenize."""

    def __init__(self, path: str, more: int | None = None) -> None:
        """``more`` tokens are added to those that the engine has counted, which is an estimate."""
        self.decided: tuple[int, Headers] | None = None
        self._path = path
        self._more = more
        self._status = 200
        self._body = BodyCollector()

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        self._status = status
        return None

    def feed(self, data: bytes) -> bytes:
        self._body.add(data)
        return b""

    def end(self) -> bytes:
        document, status = self._body.document(self._status), self._status
        count, tokens = document.get("count"), document.get("tokens")
        if count is None and isinstance(tokens, list):
            count = len(tokens)
        if status < 300 and type(count) is int and count >= 0:
            estimated = self._more is not None
            self.decided = status, _headers(estimated=estimated)
            return _answer(self._path, count + (self._more or 0), estimated=estimated)
        reason = get_text(document, "error") or "the engine sent a token count that can't be read"
        reply = error_reply(self._path, status if status >= 400 else 502, reason)
        self.decided = reply.status, reply.headers
        return reply.body


def counters(
    kind: str, tokenizes: bool, prompts: Mapping[str, ReadPrompt]
) -> dict[str, tuple[str, RequestTranslator]]:
    """Return for each path that counts the one that an engine must serve for it, and the
    translator; ``tokenizes``: the engine has /tokenize."""
    kind = kind if tokenizes and kind in ("vllm", "llama-server") else ""
    needed = TOKENIZE if kind else "/v1/chat/completions"
    return {path: (needed, Counter(path, read, kind)) for path, read in prompts.items()}


def _weigh(chat: Json) -> tuple[list[str], int]:
    """Return the texts of a prompt, and about how many tokens come on top of theirs."""
    texts, more = [], 0
    for message in chat["messages"]:
        more += _TOKENS_OF_MESSAGE
        for part in _parts(message):
            if isinstance(part, str):
                texts.append(part)
            else:
                more += _TOKENS_OF_MEDIA
    if chat.get("tools"):
        texts.append(msgspec.json.encode(chat["tools"]).decode())
    return texts, more


def _parts(message: Json) -> Iterator[Any]:
    """Yield the texts of a message, and an object for each image, sound or file."""
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict):
            yield part.get("text") if part.get("type") == "text" else part
        elif part:
            yield part
    if message.get("reasoning_content"):
        yield message["reasoning_content"]
    if message.get("tool_calls"):
        yield msgspec.json.encode(message["tool_calls"]).decode()


def _headers(*, estimated: bool) -> Headers:
    return [("content-type", "application/json"), *([ESTIMATED] if estimated else [])]


def _answer(path: str, count: int, *, estimated: bool) -> bytes:
    answer: Json = {"input_tokens": count}
    if path == RESPONSES:
        answer = {"object": "response.input_tokens", **answer}
    return msgspec.json.encode(answer | ({"estimated": True} if estimated else {}))
