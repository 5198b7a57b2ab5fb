"""Joining on the server's side: an invitation works once, and nothing else works."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from cryptography import x509

from fabric_server.dialects.errors import ApiError
from fabric_server.pki.ca import DAY, public_key_sha256
from fabric_server.pki.enrolment import Enrolment
from fabric_server.storage.rows import NodeRow
from protocol import join
from protocol.join import CA_PATH, ENROL_PATH, Enrol, Enrolled
from protocol.names import SERVER_NAME
from tests.door import Door
from tests.trust import client_context, new_key, request_for, request_pem


def asks(token: str, csr: str, **more: Any) -> Enrol:
    secret = join.to_text(join.parse(token).secret)
    return Enrol(secret=secret, csr=csr, name="desk", **more)


async def refused(enrolment: Enrolment, enrol: Enrol) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        await enrolment.enrol(enrol)
    return caught.value.status, caught.value.code


async def test_an_invitation_makes_a_node(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        key = new_key()
        enrolled = await door.enrolment.enrol(
            asks(await door.token(), request_pem(key), platform="Linux", version="1")
        )
        row = await door.store.node(enrolled.node_id)
        assert row == NodeRow(
            enrolled.node_id,
            "desk",
            public_key_sha256(request_for(key)),
            door.clock.now,
            platform="Linux",
            version="1",
        )
        certificate = x509.load_pem_x509_certificate(enrolled.certificate.encode())
        certificate.verify_directly_issued_by(door.certificates.authority.certificate)
        assert certificate.subject.rfc4514_string() == f"CN={enrolled.node_id}"
        assert certificate.public_key() == key.public_key()
        ends = certificate.not_valid_after_utc.timestamp()
        assert ends == pytest.approx(door.clock.now + 30 * DAY, abs=1)
        assert enrolled.ca == door.certificates.authority.pem
        assert enrolled.control_port == door.control.port


async def test_the_token_names_the_server_and_its_ca(tmp_path: Path) -> None:
    async with Door(tmp_path, host="fabric.example.net") as door:
        invited = await door.enrolment.invite("desk", 60.0)
        token = join.parse(invited.token)
        assert (token.host, token.api_port) == ("fabric.example.net", door.api.port)
        assert token.ca_sha256 == door.certificates.fingerprint
        assert invited.row.name == "desk"
        assert invited.row.expires_at == door.clock.now + 60.0
        assert token.secret not in msgspec.json.encode(invited.row)
        assert invited.row.secret_hash != token.secret


async def test_an_invitation_works_once(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        token = await door.token()
        await door.enrolment.enrol(asks(token, request_pem(new_key())))
        second = asks(token, request_pem(new_key()))
        assert await refused(door.enrolment, second) == (403, "invitation_used")
        assert len(await door.store.nodes()) == 1


async def test_of_many_machines_with_one_invitation_one_becomes_a_node(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        token = await door.token()
        tries = [door.enrolment.enrol(asks(token, request_pem(new_key()))) for _ in range(10)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert len([result for result in results if isinstance(result, Enrolled)]) == 1
        assert len([result for result in results if isinstance(result, ApiError)]) == 9
        assert len(await door.store.nodes()) == 1


async def test_a_machine_whose_answer_was_lost_may_ask_again(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        enrol = asks(await door.token(), request_pem(new_key()))
        first = await door.enrolment.enrol(enrol)
        again = await door.enrolment.enrol(enrol)
        assert again.node_id == first.node_id
        assert len(await door.store.nodes()) == 1
        await door.store.revoke_node(first.node_id, door.clock.now)
        assert await refused(door.enrolment, enrol) == (403, "invitation_used")


async def test_an_invitation_expires(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        enrol = asks(await door.token(valid_for=60.0), request_pem(new_key()))
        door.clock.now += 61.0
        assert await refused(door.enrolment, enrol) == (403, "invitation_expired")
        assert await door.store.nodes() == []


async def test_a_secret_that_nobody_gave_out_is_unknown(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        csr = request_pem(new_key())
        for secret in ("", "!", "A" * 43, join.to_text(bytes(32)), "\ud800"):
            enrol = Enrol(secret=secret, csr=csr, name="desk")
            assert await refused(door.enrolment, enrol) == (403, "invitation_unknown")


async def test_who_has_no_invitation_does_not_make_the_server_parse_a_request(
    tmp_path: Path,
) -> None:
    async with Door(tmp_path) as door:
        guess = Enrol(secret=join.to_text(bytes(32)), csr="not even a request", name="desk")
        assert await refused(door.enrolment, guess) == (403, "invitation_unknown")


async def test_a_bad_request_does_not_use_the_invitation_up(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        token = await door.token()
        assert await refused(door.enrolment, asks(token, "hello")) == (400, "bad_csr")
        await door.enrolment.enrol(asks(token, request_pem(new_key())))


# ── renewal ───────────────────────────────────────────────────────────────────────────────────


async def test_a_node_renews_with_the_key_it_enrolled(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        key = new_key()
        enrolled = await door.enrolment.enrol(asks(await door.token(), request_pem(key)))
        door.clock.now += 10 * DAY
        renewed = x509.load_pem_x509_certificate(
            (await door.enrolment.renew(enrolled.node_id, request_pem(key))).encode()
        )
        assert renewed.subject.rfc4514_string() == f"CN={enrolled.node_id}"
        ends = renewed.not_valid_after_utc.timestamp()
        assert ends == pytest.approx(door.clock.now + 30 * DAY, abs=1)


async def test_a_renewal_for_another_node_or_a_revoked_or_contested_one_is_refused(
    tmp_path: Path,
) -> None:
    async with Door(tmp_path) as door:
        key = new_key()
        enrolled = await door.enrolment.enrol(asks(await door.token(), request_pem(key)))

        async def code(node_id: str, csr: str) -> str:
            with pytest.raises(ApiError) as caught:
                await door.enrolment.renew(node_id, csr)
            return caught.value.code

        assert await code(enrolled.node_id, "hello") == "bad_csr"
        assert await code("node_nobody", request_pem(key)) == "node_revoked"
        await door.store.contest_node(enrolled.node_id, door.clock.now, "")
        assert await code(enrolled.node_id, request_pem(key)) == "node_contested"
        await door.store.revoke_node(enrolled.node_id, door.clock.now)
        assert await code(enrolled.node_id, request_pem(key)) == "node_revoked"


async def test_a_renewal_may_be_for_a_new_key_and_the_old_one_stays(tmp_path: Path) -> None:
    async with Door(tmp_path) as door:
        key, other = new_key(), new_key()
        enrolled = await door.enrolment.enrol(asks(await door.token(), request_pem(key)))
        pem = await door.enrolment.renew(enrolled.node_id, request_pem(other))
        renewed = x509.load_pem_x509_certificate(pem.encode())
        assert renewed.public_key() == other.public_key()
        row = await door.store.node(enrolled.node_id)
        assert row is not None
        assert row.next_key_sha256 == public_key_sha256(request_for(other))
        assert row.public_key_sha256 == public_key_sha256(request_for(key))


# ── over HTTPS ────────────────────────────────────────────────────────────────────────────────


class Caller:
    def __init__(self, door: Door, session: aiohttp.ClientSession) -> None:
        self.url = f"https://127.0.0.1:{door.api.port}"
        self._options: dict[str, Any] = {
            "ssl": client_context(door.certificates.authority.pem),
            "server_hostname": SERVER_NAME,
        }
        self._session = session

    async def get(self, path: str) -> tuple[int, str]:
        async with self._session.get(self.url + path, **self._options) as answer:
            return answer.status, await answer.text()

    async def post(self, body: bytes) -> tuple[int, Any]:
        url = self.url + ENROL_PATH
        async with self._session.post(url, data=body, **self._options) as answer:
            assert answer.content_type == "application/json"
            return answer.status, await answer.json()


async def test_the_routes_give_the_ca_and_enrol(tmp_path: Path) -> None:
    async with Door(tmp_path) as door, aiohttp.ClientSession() as session:
        caller = Caller(door, session)
        assert await caller.get(CA_PATH) == (200, door.certificates.authority.pem)
        body = msgspec.json.encode(asks(await door.token(), request_pem(new_key())))
        status, answer = await caller.post(body)
        assert status == 200
        fields = {"node_id", "certificate", "ca", "control_port", "proxy_port", "name"}
        assert set(answer) == fields
        body = msgspec.json.encode(asks(await door.token(), "hello"))
        assert await caller.post(body) == (
            400,
            {
                "error": {
                    "message": "Invalid certificate request: not a certificate request in PEM.",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "bad_csr",
                }
            },
        )


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[" * 10_000, 400, "invalid_json"),
        (b"{}", 400, "invalid_json"),
        (b'{"secret": 1, "csr": "", "name": "x"}', 400, "invalid_json"),
        (b'{"secret": "", "csr": "", "name": ""}', 400, "invalid_json"),
        (b"x" * 20_000, 413, "body_too_large"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(
    tmp_path: Path, body: bytes, status: int, code: str
) -> None:
    async with Door(tmp_path) as door, aiohttp.ClientSession() as session:
        got, answer = await Caller(door, session).post(body)
        assert (got, answer["error"]["code"]) == (status, code)


async def test_each_refusal_is_told_before_it_is_answered_and_nothing_else_is(
    tmp_path: Path,
) -> None:
    async with Door(tmp_path) as door, aiohttp.ClientSession() as session:
        caller = Caller(door, session)
        token = await door.token()
        unknown = Enrol(secret="AAAA", csr=request_pem(new_key()), name="x")
        assert (await caller.post(msgspec.json.encode(unknown)))[0] == 403
        assert (await caller.post(b"{"))[0] == 400
        assert (await caller.post(msgspec.json.encode(asks(token, request_pem(new_key())))))[
            0
        ] == 200
        assert (await caller.post(msgspec.json.encode(asks(token, request_pem(new_key())))))[
            0
        ] == 403
        assert door.refused == ["invitation_unknown", "invalid_json", "invitation_used"]
        assert (await caller.get(CA_PATH))[0] == 200


async def test_a_store_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    async with Door(tmp_path) as door, aiohttp.ClientSession() as session:
        body = msgspec.json.encode(asks(await door.token(), request_pem(new_key())))
        await door.store.close()
        status, answer = await Caller(door, session).post(body)
        assert (status, answer["error"]["code"]) == (503, "overloaded")
