"""Public names of models that their engines know by a place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.offer.names import public_name
from fabric_client.offer.offered import Offered, choose
from fabric_client.offer.patterns import EVERYTHING, Offer
from protocol.messages import ModelReport


@pytest.mark.parametrize(
    ("own", "public"),
    [
        ("llama3:latest", "llama3:latest"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("hf.co/me/model:Q4_K_M", "hf.co/me/model:Q4_K_M"),
        ("/home/joe/models/tiny.Q4_K_M.gguf", "tiny.Q4_K_M"),
        ("/home/joe/models/tiny.GGUF", "tiny"),
        ("tiny.gguf", "tiny"),
        ("models/tiny.gguf", "tiny"),
        ("./tiny.gguf", "tiny"),
        ("../joe/qwen", "qwen"),
        ("~/models/qwen/", "qwen"),
        ("~joe/qwen", "qwen"),
        ("$HOME/models/qwen", "qwen"),
        ("/models/qwen", "qwen"),
        ("//server/share/qwen", "qwen"),
        (r"C:\Users\joe\models\tiny.gguf", "tiny"),
        ("C:/Users/joe/models/qwen", "qwen"),
        (r"\\server\joe\qwen", "qwen"),
        (r"\\?\C:\Users\joe\qwen", "qwen"),
        (r"models\joe\qwen", "qwen"),
        ("file:///home/joe/llama%20chat.gguf", "llama chat"),
        ("FILE://localhost/home/joe/qwen", "qwen"),
        ("file:/home/joe/qwen", "qwen"),
        ("file:///C:/Users/joe/qwen/", "qwen"),
        ("s3://joe-private/models/qwen?key=secret", "qwen"),
        ("/home/joe/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/1a2b", "Qwen/Qwen3-8B"),
        ("~/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/1a2b/", "Qwen/Qwen3-8B"),
        (r"C:\Users\joe\hub\models--a--b--c\snapshots\1a2b", "a/b--c"),
        ("/hub/models--gpt2/snapshots/1a2b", "gpt2"),
        ("/hub/models--a--b/snapshots/1a2b/b.Q8_0.gguf", "b.Q8_0"),
        ("/home/joe/qwen/model.safetensors", "qwen"),
        ("models/joe/qwen", "qwen"),
        ("/", None), ("~", None), ("~joe", None), (".", None), ("..", None), ("C:\\", None),
        ("/home/joe/.gguf", None), ("", None), ("file:///", None), ("/home/joe/a\x1bb", None),
    ],
)  # fmt: skip
def test_a_place_becomes_the_name_of_what_is_there(own: str, public: str | None) -> None:
    assert public_name(own, "vllm") == public


def test_a_name_with_slashes_of_an_engine_that_knows_no_paths_is_kept() -> None:
    assert public_name("openrouter/meta/llama-3", "openai") == "openrouter/meta/llama-3"


@given(
    some.sampled_from(
        ["/home/joe/secret", "C:\\Users\\joe\\secret", "~/joe/secret", "file:///joe/secret"]
    ),
    some.text(min_size=0, max_size=20),
)
def test_no_folder_of_the_owner_is_in_a_public_name(folder: str, rest: str) -> None:
    separator = "\\" if "\\" in folder else "/"
    for kind in ("ollama", "vllm", "llama-server", "lm-studio", "openai"):
        name = public_name(f"{folder}{separator}x{rest}", kind) or ""
        assert "joe" not in name
        assert not name.startswith(("/", "~", "."))
        assert "\\" not in name


def chosen(*names: str, offer: Offer = EVERYTHING, before: Offered | None = None) -> Offered:
    models = [ModelReport(name) for name in names]
    return choose(models, "vllm", offer, *([] if before is None else [before]))


def test_of_two_with_one_name_the_second_is_held_back_and_the_first_stays() -> None:
    first = chosen("/a/qwen", "/b/qwen")
    assert first.own == {"qwen": "/a/qwen"}
    assert [one.name for one in first.held_back] == ["/b/qwen"]
    assert "alias" in first.held_back[0].reason
    assert chosen("/b/qwen", "/a/qwen", before=first).own == {"qwen": "/a/qwen"}
    assert chosen("/b/qwen", before=first).own == {"qwen": "/b/qwen"}


def test_a_model_that_has_the_name_itself_comes_before_a_file() -> None:
    assert chosen("/a/qwen", "qwen").own == {"qwen": "qwen"}


def test_a_pattern_may_name_the_place() -> None:
    offer = Offer(["!/home/joe/private/*"])
    found = chosen("/home/joe/private/a.gguf", "/srv/b.gguf", offer=offer)
    assert found.own == {"b": "/srv/b.gguf"}


def test_reports_have_public_names_only() -> None:
    found = chosen("/a/qwen", "llama", offer=Offer(["q*"]))
    assert [model.name for model in found.models] == ["qwen"]
    assert found.restricted
    assert found.hidden_names == {"llama"}
