"""Images and sounds in ``images``: Ollama takes base64 without a type, so the bytes decide."""

from __future__ import annotations

import base64
import binascii

from fabric_client.translation.lenient_json import Json
from fabric_client.translation.validation import invalid

_IMAGES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"))
_MAX_SCHEME = 32
_SOUNDS = ((b"ID3", "mp3"), (b"\xff\xfb", "mp3"), (b"fLaC", "flac"), (b"OggS", "ogg"))


def content_parts(text: str, images: object, at: str) -> str | list[Json]:
    """Return a message's ``content``: plain text if there are no images."""
    if images is None or images == []:
        return text
    if not isinstance(images, list):
        raise invalid(at, "must be an array of base64 strings")
    media = [_part(image, f"{at}[{index}]") for index, image in enumerate(images)]
    return [{"type": "text", "text": text}, *media] if text else media


def _part(image: object, at: str) -> Json:
    if not isinstance(image, str):
        raise invalid(at, "must be a base64 string")
    if "://" in image[:_MAX_SCHEME]:
        raise invalid(at, "must be base64: Ollama's API takes no URLs of images")
    try:
        # The engine checks the rest.
        first = base64.b64decode(image[:16], validate=True)
    except (binascii.Error, ValueError):
        raise invalid(at, "is not valid base64") from None
    for start, kind in _IMAGES:
        if first.startswith(start):
            return _image(kind, image)
    if first.startswith(b"RIFF"):
        return _image("webp", image) if first[8:12] == b"WEBP" else _sound("wav", image)
    for start, kind in _SOUNDS:
        if first.startswith(start):
            return _sound(kind, image)
    raise invalid(at, "must be a PNG, JPEG, GIF, WebP or BMP image, or a sound")


def _image(kind: str, data: str) -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def _sound(kind: str, data: str) -> Json:
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
