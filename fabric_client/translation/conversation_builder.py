"""A conversation of another dialect, told as messages of the chat API."""

from __future__ import annotations

from fabric_client.translation.validation import Json


class ConversationBuilder:
    """Built from its beginning to its end, one thing said after the other.

    Templates of chats are narrower than the APIs: many take a system message only as the first, and
    users and models only in turn.  So what the same one says in a row becomes one message, and what
    the system says later the user hands on.  Calls of tools and thoughts belong to the message that
    the model made them with.  Nothing stands between calls and their results, which are text:
    images among these come after the last of them.
    """

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self._images: list[Json] = []

    def system(self, text: str) -> None:
        last = self._last()
        if last is None:
            self._messages.append({"role": "system", "content": text})
        elif last["role"] == "system":
            last["content"] += f"\n\n{text}"
        else:
            self.user([_text(f"<system-reminder>\n{text}\n</system-reminder>")])

    def user(self, parts: list[Json]) -> None:
        images, self._images = self._images, []
        last = self._last()
        if last is not None and last["role"] == "user":
            last["content"] += parts
        else:
            self._messages.append({"role": "user", "content": images + parts})

    def assistant(self, text: str, joint: str = "") -> None:
        """``joint`` stands between this and what the model has said right before."""
        message = self._by_assistant()
        message["content"] = f"{message['content']}{joint}{text}" if message["content"] else text

    def thought(self, text: str) -> None:
        message = self._by_assistant()
        before = message.get("reasoning_content")
        message["reasoning_content"] = f"{before}\n{text}" if before else text

    def call(self, id: str, name: str, arguments: str) -> None:
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._by_assistant().setdefault("tool_calls", []).append(call)

    def result(self, call_id: str, parts: list[Json], failed: bool = False) -> None:
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        images = [part for part in parts if part["type"] != "text"]
        if images:
            text = f"{text}\n(images follow)".lstrip()
            self._images += [_text(f"Images from tool call {call_id}:"), *images]
        if failed:
            text = f"Error: {text}"
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def end(self) -> list[Json]:
        """Its messages; nothing may be said afterwards."""
        self._settle()
        for message in self._messages:
            content = message["content"]
            if message["role"] == "user" and all(part["type"] == "text" for part in content):
                message["content"] = "\n".join(part["text"] for part in content)
            elif message["role"] == "assistant" and "tool_calls" in message:
                message["content"] = content or None
        return self._messages

    def _last(self) -> Json | None:
        return self._messages[-1] if self._messages else None

    def _by_assistant(self) -> Json:
        self._settle()
        last = self._last()
        if last is None or last["role"] != "assistant":
            last = {"role": "assistant", "content": ""}
            self._messages.append(last)
        return last

    def _settle(self) -> None:
        """There are no more results."""
        if self._images:
            self.user([])


def _text(text: str) -> Json:
    return {"type": "text", "text": text}
