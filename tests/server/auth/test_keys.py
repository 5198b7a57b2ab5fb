"""API keys: how they are made, and which models they allow."""

from __future__ import annotations

from typing import Any

import pytest

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import Key, mint
from fabric_server.storage.memory import MemoryCache
from tests.contracts.samples import NOON
from tests.keys import mint_with
from tests.server.auth.fakes import Clock, Keys

# ── making keys ───────────────────────────────────────────────────────────────────────────────


def test_a_key_is_long_random_and_recognisable() -> None:
    new, other = mint("laptop", now=NOON), mint("laptop", now=NOON)
    assert new.text.startswith("sk-fab-")
    assert len(new.text) == len("sk-fab-") + 43
    assert new.text.startswith(new.row.prefix)
    assert len(new.row.prefix) == 13
    assert new.text not in repr(new.row)
    assert new.text != other.text
    assert new.row.id != other.row.id


def test_a_management_key_looks_different() -> None:
    new = mint("ops", now=NOON, management=True)
    assert new.text.startswith("mk-fab-")
    assert new.row.management


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"name": ""}, "name must have 1 to 256"),
        ({"name": "a\nb"}, "name must have 1 to 256 printable"),
        ({"name": "x" * 257}, "name must have 1 to 256"),
        ({"account": " "}, "account must have 1 to 256"),
        ({"expires_at": NOON}, "lies in the past"),
        ({"models": []}, "at least one name"),
        ({"models": ["m"], "management": True}, "not for management keys"),
    ],
)
def test_keys_that_make_no_sense_are_not_made(properties: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mint_with(**({"name": "n", "now": NOON} | properties))


def test_a_model_list_allows_what_is_on_it_with_or_without_latest() -> None:
    key = Key("key_1", "a", "n", "p", False, frozenset({"llama3.2", "qwen/qwen3:8b"}))
    assert [
        key.allows(model)
        for model in ("llama3.2", "llama3.2:latest", "llama3.2:3b", "qwen/qwen3:8b", "qwen3:8b")
    ] == [True, True, False, True, False]
    assert Key("key_1", "a", "n", "p", False, None).allows("anything")


async def test_latest_on_the_list_means_the_bare_name(cache: MemoryCache, clock: Clock) -> None:
    new = mint_with("n", now=NOON, models=["llama3.2:latest"])
    key = await KeyAuthenticator(Keys(new), cache, clock=clock).authenticate(new.text)
    assert key.allows("llama3.2")
