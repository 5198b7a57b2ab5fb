"""A node's key is replaced without a moment in which the directory holds no pair that fits."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from fabric_client.identity import Facts, Identity
from fabric_client.key_files import KeyFiles, key_pem
from fabric_server.pki.ca import DAY, Authority, public_key_sha256, read_request
from runtime.files import write
from tests.trust import new_key, request_for

NODE = "node_a"


@pytest.fixture
def authority() -> Authority:
    return Authority.make(time.time())


@pytest.fixture
def directory(tmp_path: Path, authority: Authority) -> Path:
    directory = tmp_path / "node"
    directory.mkdir()
    key = new_key()
    certificate = authority.sign_node(request_for(key), NODE, time.time(), 30 * DAY)
    write(directory / "node.key", key_pem(key), secret=True)
    write(directory / "node.pem", certificate)
    write(directory / "ca.pem", authority.pem)
    facts = Facts(NODE, "127.0.0.1", 1, 2, 3)
    write(directory / "node.json", msgspec.json.encode(facts).decode())
    return directory


def issued(authority: Authority, request: str) -> str:
    return authority.sign_node(read_request(request), NODE, time.time(), 30 * DAY)


def test_a_certificate_that_an_older_server_has_backdated_by_an_hour_only_is_good(
    directory: Path, authority: Authority
) -> None:
    identity = Identity.load(directory)
    now, older = time.time(), 23 * 3600.0
    pem = authority.sign_node(read_request(identity.request()), NODE, now + older, 30 * DAY)
    identity.store_certificate(pem)
    assert identity.judge_dates(now, "renew").level == "ok"
    assert not identity.renewal_due(now)
    assert identity.judge_dates(now - 2 * 3600.0, "renew").code == "certificate_not_begun"


def key_of(request: str) -> bytes:
    return public_key_sha256(read_request(request))


def test_a_new_key_is_in_use_with_its_certificate_and_replaces_the_old_one_when_confirmed(
    directory: Path, authority: Authority
) -> None:
    identity = Identity.load(directory)
    old = key_of(identity.request())
    request = identity.request(new_key=True)
    assert key_of(request) != old
    assert key_of(identity.request()) == old  # until there is a certificate
    if os.name == "posix":
        assert (directory / "next.key").stat().st_mode & 0o777 == 0o600
    assert identity.store_certificate(issued(authority, request))
    assert key_of(identity.request()) == key_of(request)
    assert key_of(Identity.load(directory).request()) == key_of(request)
    identity.keys.confirm_next()
    assert not (directory / "next.key").exists()
    assert not (directory / "next.pem").exists()
    assert key_of(Identity.load(directory).request()) == key_of(request)


def test_a_request_whose_answer_was_lost_is_for_the_same_key_again(directory: Path) -> None:
    identity = Identity.load(directory)
    request = identity.request(new_key=True)
    again = Identity.load(directory).request(new_key=True)
    assert key_of(again) == key_of(request)


def test_a_server_that_knows_no_new_keys_renews_the_old_one(
    directory: Path, authority: Authority
) -> None:
    identity = Identity.load(directory)
    assert not identity.store_certificate(issued(authority, identity.request()))
    assert not identity.keys.uses_next


def test_a_next_key_that_the_server_does_not_know_is_dropped(
    directory: Path, authority: Authority
) -> None:
    identity = Identity.load(directory)
    old = key_of(identity.request())
    identity.store_certificate(issued(authority, identity.request(new_key=True)))
    identity.drop_next_key()
    assert key_of(identity.request()) == old
    assert key_of(Identity.load(directory).request()) == old


def test_a_foreign_certificate_is_not_stored(directory: Path, authority: Authority) -> None:
    identity = Identity.load(directory)
    foreign = authority.sign_node(request_for(new_key()), NODE, time.time(), DAY)
    identity.request(new_key=True)
    with pytest.raises(ValueError, match="another key"):
        identity.store_certificate(foreign)
    assert not identity.keys.uses_next


def test_after_a_crash_at_any_step_a_pair_is_there(
    directory: Path, authority: Authority, tmp_path: Path
) -> None:
    """Each state of the directory between two steps, as a crash leaves it."""
    states = []

    def crash() -> None:
        states.append(shutil.copytree(directory, tmp_path / f"crash{len(states)}"))

    identity = Identity.load(directory)
    crash()
    request = identity.request(new_key=True)
    crash()
    pem = issued(authority, request)
    identity.store_certificate(pem)
    crash()
    os.replace(directory / "next.key", directory / "node.key")  # the first half of confirm_next
    crash()
    os.replace(directory / "next.pem", directory / "node.pem")
    crash()
    for number, state in enumerate(states):
        found = Identity.load(state)
        found.context("test")
        assert (key_of(found.request()) == key_of(request)) == (number >= 2)
        found.store_certificate(issued(authority, found.request(new_key=True)))
        found.keys.confirm_next()
        Identity.load(state).context("test")


def test_a_next_certificate_without_its_key_is_ignored(
    directory: Path, authority: Authority
) -> None:
    identity = Identity.load(directory)
    old = key_of(identity.request())
    identity.store_certificate(issued(authority, identity.request(new_key=True)))
    (directory / "next.key").unlink()
    assert not KeyFiles(directory).uses_next
    assert key_of(Identity.load(directory).request()) == old
