"""Fields of request bodies that make an engine open a URL or a file: the table of every dialect.

An engine runs in its owner's home.  A URL that it opened for a user would lead into that network,
and a path to the owner's files.  So no field below reaches an engine with anything but data in it.

Names are compared without regard to case, as engines written in Go do (``fold``), and at any depth:
engines differ in where they look.  What each row is for:

| dialect   | fields |
|---|---|
| OpenAI's chat, vLLM's pooling and score | image_url, audio_url, video_url (string or object), input_audio.data, file.file_data, file.file_url |
| Responses | input_image.image_url, input_file.file_url, computer_screenshot.image_url, tools' server_url |
| Anthropic | source of image and document, in tool_result too; mcp_servers |
| Ollama    | images: base64, no URL |
| SGLang, Infinity, Jina | image, video, audio beside or instead of text |
| text to speech | ref_audio, reference_audio |
| transformers, mlx-vlm | url or path in a part of type image, audio or video |
| JSON schemas | $ref that leads outside |
"""  # noqa: E501 - a table

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """A field may hold one of these; ``media_types`` knows each by its first bytes."""

    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    FILE = "file"
    """A document, or an image."""


class Rule(Enum):
    """The server does one of these with a field."""

    REFERENCE = "a URL: data: passes, http and https are fetched"
    INLINE = "base64 or data:; http and https are fetched, where the dialect knows URLs"
    BASE64 = "base64 or data: only"
    SOURCE = "Anthropic's object with a type, and data or a URL"
    LINK = "a URL if its object is a medium; refused unless its object only cites"
    WEAK_LINK = "a URL or path if its object is a medium; otherwise text"
    REFUSED = "refused, unless it is empty: engines open, load or call what it names"
    TEMPLATE = "text, but no URL or path"
    OPTIONS = "options of engines: no URL or path anywhere inside"
    SCHEMA = "a JSON schema: $ref stays inside"
    TEXT = "text that the model reads or that is passed back: URLs are only words"


MEDIA: dict[str, tuple[Rule, Kind]] = {
    "image_url": (Rule.REFERENCE, Kind.IMAGE),
    "audio_url": (Rule.REFERENCE, Kind.AUDIO),
    "video_url": (Rule.REFERENCE, Kind.VIDEO),
    "file_url": (Rule.REFERENCE, Kind.FILE),
    "ref_audio": (Rule.REFERENCE, Kind.AUDIO),
    "reference_audio": (Rule.REFERENCE, Kind.AUDIO),
    "image": (Rule.INLINE, Kind.IMAGE),
    "images": (Rule.INLINE, Kind.IMAGE),
    "input_image": (Rule.INLINE, Kind.IMAGE),
    "image_data": (Rule.INLINE, Kind.IMAGE),
    "mask": (Rule.INLINE, Kind.IMAGE),
    "video": (Rule.INLINE, Kind.VIDEO),
    "videos": (Rule.INLINE, Kind.VIDEO),
    "video_data": (Rule.INLINE, Kind.VIDEO),
    "input_video": (Rule.INLINE, Kind.VIDEO),
    "audio": (Rule.INLINE, Kind.AUDIO),
    "audios": (Rule.INLINE, Kind.AUDIO),
    "audio_data": (Rule.INLINE, Kind.AUDIO),
    "input_audio": (Rule.BASE64, Kind.AUDIO),
    "file_data": (Rule.BASE64, Kind.FILE),
    "file": (Rule.BASE64, Kind.FILE),
    "multimodal_data": (Rule.BASE64, Kind.FILE),
}
OTHERS: dict[str, Rule] = {
    "source": Rule.SOURCE,
    "url": Rule.LINK,
    "urls": Rule.LINK,
    "uri": Rule.WEAK_LINK,
    "path": Rule.WEAK_LINK,
    **dict.fromkeys(
        (
            *("server_url", "mcp_servers"),  # tools of other servers
            *("lora_request", "lora_path", "adapter", "adapters", "adapter_path"),
            "draft_model",
            *("ref_audio_path", "prompt_audio_path", "speaker_wav", "model_path", "image_path"),
            *("kv_transfer_params", "bootstrap_host", "remote_host"),  # servers that it connects to
            *("logits_processors", "custom_logit_processor"),  # code that it loads
        ),
        Rule.REFUSED,
    ),
    "chat_template": Rule.TEMPLATE,
    "mm_processor_kwargs": Rule.OPTIONS,
    "media_io_kwargs": Rule.OPTIONS,
    "extra_args": Rule.OPTIONS,
    "vllm_xargs": Rule.OPTIONS,
    **dict.fromkeys(
        (
            *("parameters", "input_schema", "output_schema", "schema", "json_schema"),
            *("response_format", "response_schema", "output_format", "format"),
            *("guided_json", "structured_outputs", "structural_tag"),
        ),
        Rule.SCHEMA,
    ),
    **dict.fromkeys(
        (
            *("arguments", "input_examples", "action", "actions", "annotations", "citations"),
            *("metadata", "client_metadata", "attributes", "chat_template_kwargs"),
        ),
        Rule.TEXT,
    ),
}
TOOL_INPUT = "input"
"""Below the top of a body: a tool's arguments, which are text.  At the top it is the prompt."""

URL_ENDINGS = ("_url", "_urls", "_uri", "_uris")
"""Other fields with such a name take ``data:`` only."""
INSIDE_REFERENCE = frozenset({"url", "urls", "uri", "path", "href"})
INSIDE_INLINE = frozenset({"data", "b64_json", "base64"})
NAMES = frozenset({"filename", "name", "title", "context", "text", "id", "uuid"})
"""Fields of a medium that nobody opens."""

REFERS_OUTSIDE = frozenset({"$ref", "$dynamicref", "$recursiveref"})

CITING_TYPES = frozenset(
    {
        *("url_citation", "web_search_result", "web_search_result_location", "search_result"),
        *("search_result_location", "web_fetch_result", "open_page", "find_in_page"),
    }
)
"""Types of objects whose ``url`` says where a text comes from."""
MEDIA_TYPES: dict[str, Kind] = {
    **dict.fromkeys(("image", "image_url", "input_image", "computer_screenshot"), Kind.IMAGE),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), Kind.AUDIO),
    **dict.fromkeys(("video", "video_url", "input_video"), Kind.VIDEO),
    **dict.fromkeys(("file", "file_url", "input_file", "document"), Kind.FILE),
}

FORM_FIELDS = frozenset(
    {
        *("url", "uri", "path", "file_url", "audio_url", "image_url", "video_url", "file_path"),
        *("source", "ref_audio", "reference_audio", "speaker_wav", "lora_path", "lora_request"),
    }
)
"""Fields of multipart forms that are refused; ``file`` must be a file."""

_FOLDED = {"\u017f": "s", "\u212a": "k"}  # what Go's encoding/json takes for s and k


def fold(name: str) -> str:
    """Return a field's name as it is compared."""
    if not name.isascii():
        name = "".join(_FOLDED.get(letter, letter) for letter in name)
    return name.lower()
