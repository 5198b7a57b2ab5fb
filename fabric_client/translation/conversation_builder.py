"""Building the chat API's messages from a conversation of another dialect."""

from __future__ import annotations

from fabric_client.translation.lenient_json import Json


class ConversationBuilder:
    """Built from the first message to the last.

    Chat templates are narrower than the APIs: many take a system message only as the first, and
    user and assistant only in turn.  So consecutive messages of one role become one message, and
    later system messages become part of a user's.  Tool calls and reasoning join the assistant's
    message that they belong to.  Nothing may stand between tool calls and their results, and
    results are text: images among them follow the last result.
    """

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self._images: list[Json] = []
        """Parts of results, to be added behind the last result."""

    def add_system(self, text: str) -> None:
        last = self._last()
        if last is None:
            self._messages.append({"role": "system", "content": text})
        elif last["role"] == "system":
            last["content"] += f"\n\n{text}"
        else:
            self.add_user([_text(f"<system-reminder>\n{text}\n</system-reminder>")])

    def add_user(self, parts: list[Json]) -> None:
        images, self._images = self._images, []
        last = self._last()
        if last is not None and last["role"] == "user":
            last["content"] += parts
        else:
            self._messages.append({"role": "user", "content": images + parts})

    def add_assistant(self, text: str, separator: str = "") -> None:
        """Add text; ``separator`` goes between it and text that the message already has."""
        message = self._assistant_message()
        before = message["content"]
        message["content"] = f"{before}{separator}{text}" if before else text

    def add_reasoning(self, text: str) -> None:
        message = self._assistant_message()
        before = message.get("reasoning_content")
        message["reasoning_content"] = f"{before}\n{text}" if before else text

    def add_tool_call(self, id: str, name: str, arguments: str) -> None:
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._assistant_message().setdefault("tool_calls", []).append(call)

    def add_tool_result(self, call_id: str, parts: list[Json], failed: bool = False) -> None:
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        images = [part for part in parts if part["type"] != "text"]
        if images:
            text = f"{text}\n(images follow)".lstrip()
            self._images += [_text(f"Images from tool call {call_id}:"), *images]
        if failed:
            text = f"Error: {text}"
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def build(self) -> list[Json]:
        """Return the messages; nothing may be added afterwards."""
        self._add_images()
        for message in self._messages:
            content = message["content"]
            if message["role"] == "user" and all(part["type"] == "text" for part in content):
                message["content"] = "\n".join(part["text"] for part in content)
            elif message["role"] == "assistant" and "tool_calls" in message:
                message["content"] = content or None
        return self._messages

    def _last(self) -> Json | None:
        return self._messages[-1] if self._messages else None

    def _assistant_message(self) -> Json:
        """Return the message that the assistant's next part belongs to."""
        self._add_images()
        last = self._last()
        if last is None or last["role"] != "assistant":
            last = {"role": "assistant", "content": ""}
            self._messages.append(last)
        return last

    def _add_images(self) -> None:
        if self._images:
            self.add_user([])


def _text(text: str) -> Json:
    return {"type": "text", "text": text}
