"""The names that a public CA can certify, and the settings of an order."""

from __future__ import annotations

from typing import Any

import pytest

from fabric_server.acme.names import certifiable
from fabric_server.config import PREFIX, Config
from runtime.settings import SettingsError, load


def test_names_are_taken_as_certificates_have_them_each_once() -> None:
    assert certifiable(["GPU.example.org.", "gpu.example.org", "bücher.example.net"]) == (
        "gpu.example.org",
        "xn--bcher-kva.example.net",
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("203.0.113.7", "is an IP address"),
        ("[2001:db8::1]", "is an IP address"),
        ("2001:db8::1", "is an IP address"),
        ("localhost", "local networks"),
        ("gpu.localhost", "local networks"),
        ("box.lan", "local networks"),
        ("nas.home.arpa", "local networks"),
        ("a.internal", "local networks"),
        ("gpu", "not a whole DNS name"),
        ("*.example.org", "is a pattern"),
        ("https://gpu.example.org", "neither a host name nor an address"),
        ("a b.example.org", "neither a host name nor an address"),
    ],
)
def test_other_names_are_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        certifiable(["gpu.example.org", name])
    assert name in str(caught.value)


def test_more_names_than_a_certificate_has_are_refused() -> None:
    with pytest.raises(ValueError, match="100 at most"):
        certifiable([f"n{number}.example.org" for number in range(101)])


# ── settings ──────────────────────────────────────────────────────────────────────────────────


def server(**flags: Any) -> Config:
    return load(Config, file=None, environ={}, flags=flags, prefix=PREFIX)


AGREED: dict[str, Any] = {"acme": True, "acme_agree_terms": True, "address": ["gpu.example.org"]}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"acme": True, "address": ["gpu.example.org"]}, "acme_agree_terms.*letsencrypt.org"),
        ({**AGREED, "public_certificate": "a", "public_key": "b"}, "set one"),
        ({**AGREED, "acme_staging": True, "acme_directory": "https://a.org/dir"}, "set one of"),
        ({**AGREED, "acme_directory": "http://ca.example.org/dir"}, "no URL of https"),
        ({**AGREED, "acme_directory": "https://joe:pass@ca.example.org/dir"}, "no URL of https"),
        ({**AGREED, "acme_email": "nobody"}, "no address"),
        ({**AGREED, "address": ["203.0.113.7"]}, "is an IP address.*acme_names"),
        ({**AGREED, "address": ["gpu.example.org", "localhost"]}, "local networks.*acme_names"),
        ({**AGREED, "acme_names": ["localhost"]}, "local networks"),
        ({**AGREED, "acme_http_port": 18080}, "public_port and acme_http_port are both 18080"),
    ],
)
def test_an_order_that_no_ca_takes_is_refused_with_a_sentence(
    settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        server(**settings)


def test_the_order_is_for_the_names_of_the_server_or_those_that_are_set() -> None:
    assert server(**AGREED).names_to_certify() == ("gpu.example.org",)
    others = server(**{**AGREED, "address": ["203.0.113.7"]}, acme_names=["a.org", "b.org"])
    assert others.names_to_certify() == ("a.org", "b.org")


def test_the_challenge_is_answered_at_the_port_that_is_there() -> None:
    assert server(**AGREED).acme_kind == "http-01"
    assert server(**AGREED, public_port=443).acme_kind == "tls-alpn-01"
    assert server(**AGREED, public_port=443, acme_challenge="http-01").acme_kind == "http-01"


def test_the_ca_is_lets_encrypts_its_test_ca_or_another() -> None:
    assert server(**AGREED).acme_url == "https://acme-v02.api.letsencrypt.org/directory"
    assert "staging" in server(**AGREED, acme_staging=True).acme_url
    url = "https://ca.example.org:9000/acme/acme/directory"
    assert server(**AGREED, acme_directory=url).acme_url == url
