"""The node's own guard: whatever the server lets through, no engine gets a URL to open."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fabric_client.proxy.preparation import prepare
from fabric_client.translation import LocalReply, TranslatedRequest
from fabric_client.translation.paths import native_paths, path_handlers
from protocol.messages import RequestHead

HOME = "http://192.168.1.1/cgi?reboot"
DATA = "data:image/png;base64,iVBORw0KGgo="
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


def prepared(path: str, body: object, native: set[str]) -> TranslatedRequest | LocalReply:
    translate = path_handlers("vllm", native)[path]
    assert translate is not None
    head = RequestHead("req_1", "engine", "POST", path, [], None, 1000, 1)
    return prepare(translate, None, head, json.dumps(body).encode())


def user(*content: object) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [*content]}]}


def bodies(url: str) -> list[tuple[str, dict[str, Any]]]:
    source = {"type": "image", "source": {"type": "url", "url": url}}
    image = {"type": "input_image", "image_url": url}
    return [
        (CHAT, user({"type": "image_url", "image_url": {"url": url}})),
        (CHAT, user({"type": "image_url", "image_url": url})),
        (CHAT, user({"type": "image_url", "Image_URL": [url]})),
        (CHAT, user({"type": "video_url", "video_url": {"url": url}})),
        (MESSAGES, user(source)),
        (MESSAGES, user({"type": "tool_result", "tool_use_id": "t", "content": [source]})),
        (RESPONSES, {"model": "m", "input": [{"role": "user", "content": [image]}]}),
    ]


@pytest.mark.parametrize("native", [{CHAT}, {CHAT, MESSAGES, RESPONSES, "/rerank"}])
def test_no_engine_gets_a_url(native: set[str]) -> None:
    for url in (HOME, "https://example.com/a.png", "file:///etc/passwd", "/etc/passwd", " data:,"):
        for path, body in bodies(url):
            reply = prepared(path, body, native)
            assert isinstance(reply, LocalReply), (path, url)
            assert reply.status == 400
            assert "data: URL" in json.loads(reply.body)["error"]["message"]
    for path, body in bodies(DATA):
        assert isinstance(prepared(path, body, native), TranslatedRequest)


def test_rerank_too() -> None:
    body = {"model": "m", "documents": [{"content": [{"image_url": {"url": HOME}}]}]}
    assert isinstance(prepared("/rerank", body, {"/rerank"}), LocalReply)


def test_text_may_mention_urls() -> None:
    call = {"function": {"name": "f", "arguments": json.dumps({"image_url": HOME})}}
    schema = {"type": "object", "properties": {"image_url": {"type": "string"}}}
    body = {
        **user({"type": "text", "text": f'"image_url": "{HOME}"'}),
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
    }
    body["messages"].append({"role": "assistant", "tool_calls": [call]})
    assert isinstance(prepared(CHAT, body, {CHAT}), TranslatedRequest)
    used = {"type": "tool_use", "id": "t", "name": "f", "input": {"image_url": HOME}}
    body = user("a")
    body["messages"] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [used]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]},
    ]
    assert isinstance(prepared(MESSAGES, body, {CHAT}), TranslatedRequest)
    assert isinstance(prepared(MESSAGES, body, {MESSAGES}), TranslatedRequest)


def test_ollamas_images_are_base64() -> None:
    body = {"model": "m", "prompt": "a", "images": [HOME]}
    reply = prepared("/api/generate", body, {CHAT})
    assert isinstance(reply, LocalReply)
    assert "takes no URLs" in json.loads(reply.body)["error"]


def test_bodies_with_media_are_read_whole() -> None:
    handlers = path_handlers("vllm", native_paths("vllm", {}, []))
    assert {path for path, handler in handlers.items() if handler is None} == {
        *("/tokenize", "/detokenize"),
    }
