"""One order at a CA, by certbot's library: each method asks the CA, and blocks meanwhile.

Imported when a certificate is ordered: the extra ``acme`` brings the library, and its import takes
a while.
"""

from __future__ import annotations

import datetime
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from acme import challenges, client, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC
from josepy.util import ComparableECKey
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from fabric_server.acme.answers import Answer, Kind
from fabric_server.acme.failure import AcmeFailure
from fabric_server.pki.ca import key_pem, names_of
from runtime.version import VERSION

REQUEST_SECONDS = 15
"""Timeout of one request to the CA; a server that stops waits so long at most."""
POLL_SECONDS = 1.5
MAX_CHAIN = 100_000
MAX_BODY = 1024 * 1024
NONCE_TRIES = 5
"""Tries, of two posts each, of a request that the CA refuses for its nonce only."""
BODY_SECONDS = 60.0
"""Time for a whole body: ``REQUEST_SECONDS`` is that of one read, and may begin again for ever."""

_LATER = "nothing, if it works later; else see the CA's status page"
_REACH = "{port} of the name must reach this server from the internet: check DNS (AAAA, too), "
_REACH += "firewall and forwarding"
_REMEDIES = {
    "connection": _REACH,
    "dns": "make a DNS record (A or AAAA) of the name that leads here",
    "caa": "allow this CA in the CAA record of the name",
    "tls": _REACH,
    "unauthorized": "another machine answers there: " + _REACH,
    "incorrectResponse": "another machine answers there: " + _REACH,
    "rateLimited": "wait, and test with --acme-staging; see letsencrypt.org/docs/rate-limits",
    "rejectedIdentifier": "set acme_names to names that this CA certifies",
    "unsupportedIdentifier": "set acme_names to names that this CA certifies",
    "invalidContact": "correct acme_email",
    "unsupportedContact": "correct acme_email",
    "userActionRequired": "read and agree to what the CA says there",
    "externalAccountRequired": "it wants an account made by hand: take another CA",
    "accountDoesNotExist": "remove the account's key in the directory acme of data",
}


@challenges.ChallengeResponse.register
class _TlsAlpnResponse(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TlsAlpn(challenges.KeyAuthorizationChallenge):
    """The challenge of RFC 8737, which the library left out in its version 5."""

    typ = "tls-alpn-01"
    response_cls = _TlsAlpnResponse

    def validation(self, account_key: JWK, **kwargs: Any) -> str:
        return self.key_authorization(account_key)


class _BoundedBodies(HTTPAdapter):
    """Reads bodies of responses itself, and no longer than ``MAX_BODY`` and ``BODY_SECONDS``."""

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(*args, **kwargs)
        ends = time.monotonic() + BODY_SECONDS
        body = bytearray()
        try:
            while part := response.raw.read1(65_536, decode_content=True):
                body += part
                if len(body) > MAX_BODY:
                    raise requests.RequestException(f"its answer is longer than {MAX_BODY} bytes")
                if time.monotonic() > ends:
                    raise requests.Timeout(f"its answer has not ended after {BODY_SECONDS:.0f} s")
        except (HTTPError, OSError) as error:
            response.close()
            if isinstance(error, requests.RequestException):
                raise
            raise requests.ConnectionError(error) from error
        response.raw.release_conn()
        response.raw = io.BytesIO(body)
        return response


class _Network(client.ClientNetwork):
    """Posts what is refused for its nonce again, with a fresh one (RFC 8555, section 6.5).

    A CA may forget nonces whenever it likes, and has not looked at the request when it says so.
    """

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        for _ in range(NONCE_TRIES - 1):
            try:
                return super().post(*args, **kwargs)  # which itself tries it twice
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


@dataclass(frozen=True)
class Options:
    """The CA that is asked, and how."""

    url: str
    kind: Kind
    email: str = ""
    ca: Path | None = None
    """The CA of the CA's own HTTPS, if it is not a public one."""


class Session:
    """An order, from the account to the certificate.  Every method raises ``AcmeFailure``."""

    def __init__(self, options: Options, account_key: ec.EllipticCurvePrivateKey) -> None:
        self._options = options
        self._key = JWKEC(key=ComparableECKey(account_key))
        self._network = _Network(
            self._key,
            alg=ES256,
            user_agent=f"inference-fabric/{VERSION}",
            timeout=REQUEST_SECONDS,
        )
        for scheme in ("http://", "https://"):
            self._network.session.mount(scheme, _BoundedBodies())
        if options.ca is not None:
            self._network.verify_ssl = str(options.ca)  # as requests takes it
        self._names: Sequence[str] = ()
        self._client: client.ClientV2
        self._order: messages.OrderResource
        self._chosen: list[messages.ChallengeBody] = []
        self._certificate_key = ec.generate_private_key(ec.SECP256R1())

    def begin(self, names: Sequence[str]) -> list[Answer]:
        """Order a certificate; return what has to be answered, before ``ask``."""
        self._names = names
        with self._explained():
            directory = client.ClientV2.get_directory(self._options.url, self._network)
            self._client = client.ClientV2(directory, self._network)
            self._register()
            self._order = self._client.new_order(self._request(names))
            return [answer for one in self._order.authorizations for answer in self._answer(one)]

    def ask(self) -> None:
        """Have the CA look at the answers."""
        with self._explained():
            for one in self._chosen:
                self._client.answer_challenge(one, one.chall.response(self._key))

    def decided(self) -> bool:
        """Return whether the CA has found all answers good.  Raises if it has found one bad."""
        with self._explained():
            polled = [self._client.poll(one)[0] for one in self._order.authorizations]
        for one in polled:
            if one.body.status not in (messages.STATUS_PENDING, messages.STATUS_VALID):
                raise self._bad_answer(one)
        return all(one.body.status == messages.STATUS_VALID for one in polled)

    def finish(self) -> None:
        """Have the certificate issued; ``issued`` returns it."""
        with self._explained():
            self._order = self._client.begin_finalization(self._order)

    def issued(self) -> str | None:
        """Return the key and the chain; None while the CA still works on it."""
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=POLL_SECONDS)
        with self._explained():
            try:
                order = self._client.poll_finalization(self._order, deadline)
            except errors.TimeoutError:
                return None
            return key_pem(self._certificate_key) + self._checked(order.fullchain_pem)

    def close(self) -> None:
        self._network.session.close()

    def _register(self) -> None:
        """Find or make the account.  The terms were agreed to: ``acme_agree_terms``."""
        wanted = messages.NewRegistration.from_data(
            email=self._options.email or None, terms_of_service_agreed=True
        )
        try:
            self._client.new_account(wanted)
        except errors.ConflictError as error:
            known = messages.RegistrationResource(body=wanted, uri=error.location)
            self._network.account = known

    def _request(self, names: Sequence[str]) -> bytes:
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
            )
            .sign(self._certificate_key, hashes.SHA256())
        )
        return request.public_bytes(Encoding.PEM)

    def _answer(self, authorization: messages.AuthorizationResource) -> Iterator[Answer]:
        if authorization.body.status == messages.STATUS_VALID:
            return  # checked not long ago
        name, kind = authorization.body.identifier.value, self._options.kind
        for one in authorization.body.challenges:
            if one.chall.typ == kind:
                self._chosen.append(one)
                token = one.chall.encode("token")
                yield Answer(name, kind, token, one.chall.key_authorization(self._key))
                return
        raise AcmeFailure("refused", f"the CA offers no {kind} for {name}", "set acme_challenge")

    def _checked(self, chain: str) -> str:
        if len(chain) > MAX_CHAIN:
            raise ValueError(f"the chain has {len(chain)} bytes")
        leaf = x509.load_pem_x509_certificates(chain.encode())[0]
        ours = leaf.public_key() == self._certificate_key.public_key()
        if not ours or set(names_of(leaf)) != set(self._names):
            raise ValueError("the certificate is not for the key or the names of the order")
        return chain

    # ── what the CA or the network says ───────────────────────────────────────────────────────

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise ``AcmeFailure`` instead of what the libraries raise."""
        host = urlsplit(self._options.url).netloc
        try:
            yield
        except messages.Error as error:
            raise self._refusal(error) from error
        except errors.IssuanceError as error:
            raise self._refusal(error.error) from error
        except requests.RequestException as error:
            remedy = "check the network and acme_directory; for a CA of your own set acme_ca"
            raise AcmeFailure("unreachable", f"{host}: {_root(error)}", remedy) from error
        except AcmeFailure:
            raise
        except Exception as error:  # the libraries do not document all that strange answers raise
            reason = f"{host} does not answer as an ACME CA does: {error or type(error).__name__}"
            raise AcmeFailure("refused", reason, "check acme_directory") from error

    def _refusal(self, error: messages.Error, name: str = "") -> AcmeFailure:
        of = name or getattr(error.identifier, "value", "")
        problem = str(error.typ).rpartition(":")[2]
        reason = str(error.detail or error.title or problem)
        for one in (error.subproblems or ())[:3]:
            reason += f"; {getattr(one.identifier, 'value', '')}: {one.detail or one.typ}"
        code = "rate_limited" if problem == "rateLimited" else "check" if name else "refused"
        port = "port 80" if self._options.kind == "http-01" else "port 443"
        remedy = _REMEDIES.get(problem, _LATER).format(port=port)
        return AcmeFailure(code, f"{of}: {reason}" if of else reason, remedy)

    def _bad_answer(self, authorization: messages.AuthorizationResource) -> AcmeFailure:
        name = authorization.body.identifier.value
        for one in authorization.body.challenges:
            if one.error is not None:
                return self._refusal(one.error, name)
        status = authorization.body.status.name
        return AcmeFailure("check", f"{name}: the CA's check is {status}", _LATER)


def _root(error: BaseException) -> str:
    """Return the words of the first of the errors that led to this one."""
    seen: BaseException = error
    while (before := seen.__cause__ or seen.__context__) is not None:
        seen = before
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    return str(seen) or type(seen).__name__
