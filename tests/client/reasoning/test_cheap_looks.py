"""What is told from a few bytes of an answer is what reading all of it tells."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fabric_client.reasoning import ReasoningFilter
from fabric_client.reasoning.repair import is_sound

Json = dict[str, Any]
_UNSOUND = re.compile(rb"NaN|-?Infinity|\\u[dD][89a-fA-F]|\xef\xbb\xbf")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')

odd_pieces = st.sampled_from(
    [
        *(b"N", b"NaN", b"I", b"Infinity", b"-Infinity", b"\\", b"\\\\", b"\\u", b"\\ud83d"),
        *(
            b"\\uD83d",
            b"\\u00e9",
            b"\\ude00",
            b"a",
            b'"',
            b"\xef\xbb\xbf",
            b"\xc3\xa9",
            b"\xc3",
            b"u",
        ),
    ]
)


@given(st.lists(odd_pieces | st.binary(max_size=4), max_size=12).map(b"".join))
@example(b'{"a":"\\ud83d"}')
@example(b'{"a":"\\\\nu Nan \xc3\xa9"}')
def test_what_passes_unread_has_nothing_that_clients_can_t_read(data: bytes) -> None:
    plain = _UNSOUND.search(data) is None
    try:
        data.decode()
    except UnicodeDecodeError:
        plain = False
    assert is_sound(data) == plain


spaces = st.sampled_from(["", " ", "\n\t "])
texts = st.sampled_from(
    ["Hello.", "usage", '"usage": {', "final_tokens", "analysis_tokens", '{"usage":{"a":1}}', "é"]
)
figures = st.fixed_dictionaries(
    {"completion_tokens": st.integers(0, 99)},
    optional={
        "prompt_tokens": st.integers(0, 9),
        "usage": st.just({}),
        "analysis_tokens": st.just(None),
        "final_tokens": st.integers(0, 9),
        "completion_tokens_details": st.fixed_dictionaries(
            {"reasoning_tokens": st.integers(-1, 120) | st.none()}
        ),
    },
)
messages = st.fixed_dictionaries(
    {"content": texts | st.none()},
    optional={
        "role": texts,
        "reasoning_content": texts,
        "tool_calls": st.lists(st.fixed_dictionaries({"usage": st.just({})}), max_size=2),
    },
)
others = st.lists(st.sampled_from(["usage", "final_tokens", "analysis_tokens", "id"]), max_size=3)


@st.composite
def completions(draw: st.DrawFn) -> str:
    """Draw the text of a whole answer; a key may come twice, of which the last counts."""
    choices = [{"index": 0, "message": one} for one in draw(st.lists(messages, max_size=2))]
    fields = [("choices", json.dumps(choices)), ("usage", json.dumps(draw(figures)))]
    for name in draw(others):
        other = "{ }" if name == "usage" else '"usage"'
        fields.append((name, draw(st.sampled_from(["null", other]))))
    fields = draw(st.permutations(fields))
    last = max(at for at, (name, _) in enumerate(fields) if name == "usage")
    if "completion_tokens" not in fields[last][1]:  # the last one has the figures
        fields.append(("usage", json.dumps(draw(figures))))
    written = [f'"{name}"{draw(spaces)}:{draw(spaces)}{text}' for name, text in fields]
    return "{" + ",".join(written) + "}" + draw(spaces)


def shares(document: Json) -> Json:
    """Return the shares of an answer's tokens, by characters where the engine has not counted."""
    reasoning = content = 0
    for choice in document["choices"]:
        message = choice["message"]
        reasoning += len(message.get("reasoning_content") or "")
        content += len(message.get("content") or "")
        content += sum(len(json.dumps(call)) for call in message.get("tool_calls") or ())
    total = document["usage"]["completion_tokens"]
    counted = (document["usage"].get("completion_tokens_details") or {}).get("reasoning_tokens")
    if counted is None or counted <= 0 < reasoning:
        counted = round(total * reasoning / (reasoning + content)) if reasoning else 0
    analysis = min(max(counted, 0), total)
    return {"analysis_tokens": analysis, "final_tokens": total - analysis}


@given(completions())
@example('{"choices":[],"usage":{"completion_tokens":1},"usage" : {"completion_tokens":2}}')
@example('{"id":"usage","choices":[],"usage":{"completion_tokens":1}}')
@example('{"choices":[],"usage" :\n{"completion_tokens":1,"final_tokens":null}}')
def test_shares_are_put_in_as_text_only_where_their_place_is_certain(text: str) -> None:
    body, document = text.encode(), json.loads(text)
    added = shares(document)
    reasoning = ReasoningFilter(stream=False)
    reasoning.head(200, [("content-type", "application/json")])
    answer = reasoning.feed(body) + reasoning.end()
    assert reasoning.decided == (200, [("content-type", "application/json")])
    assert json.loads(answer) == {**document, "usage": {**document["usage"], **added}}
    found = _USAGE.search(body)
    names = [body.count(b'"%b"' % name) for name in (b"usage", b"analysis_tokens", b"final_tokens")]
    if found is not None and names == [1, 0, 0]:
        inserted = b'"analysis_tokens":%d,"final_tokens":%d,' % tuple(added.values())
        assert answer == body[: found.end()] + inserted + body[found.end() :]


CHUNK = b'{"choices":[{"index":0,"delta":{"reasoning":"r"}}]}'
ALIASED = b'{"choices":[{"index":0,"delta":{"reasoning":"r","reasoning_content":"r"}}]}'
lines = st.sampled_from(
    [b"data: " + CHUNK, b"data:" + CHUNK, b": data: " + CHUNK, b" data: " + CHUNK, b"event: x"]
)


@given(st.lists(lines, max_size=4), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans())
def test_an_event_is_changed_in_its_first_line_of_data(
    written: list[bytes], end: bytes, marked: bool
) -> None:
    event = b"".join(line + end for line in [*written, b""])
    expected = list(written)
    for place, line in enumerate(written):
        if line.startswith(b"data:"):
            expected[place] = line.replace(CHUNK, ALIASED)
            break
    reasoning = ReasoningFilter()
    reasoning.head(200, [("content-type", "text/event-stream")])
    answer = reasoning.feed(b"\xef\xbb\xbf" * marked + event) + reasoning.end()
    assert answer.removeprefix(b"\xef\xbb\xbf") == b"".join(line + end for line in [*expected, b""])
