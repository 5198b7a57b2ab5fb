"""The checks of a server's ports: each by itself, here and under the server's public name."""

from __future__ import annotations

import ssl
from functools import partial

import msgspec

from fabric_server.cli.endpoints import Ready
from fabric_server.config import Config
from fabric_server.net.listener import PortProblem
from fabric_server.net.sockets import bind
from protocol.aio.tls import DialContext
from protocol.names import CONTROL_ALPN, SERVER_NAME, TUNNEL_ALPN
from runtime.doctor import Check, in_thread
from runtime.findings import Finding, ok
from runtime.port_probe import Target, judge, probe, resolve

SECONDS = 20.0
_ALPN = {"control": CONTROL_ALPN, "proxy": TUNNEL_ALPN}
_ANYWHERE = {"::": "::1", "0.0.0.0": "127.0.0.1"}  # noqa: S104 - compared with, not bound
_NO_CERTIFICATE = "TLSV13_ALERT_CERTIFICATE_REQUIRED"


class PortChecks:
    """Checks of all ports and of the server's names."""

    def __init__(self, settings: Config, running: Ready | None) -> None:
        """``running`` has the ports of the server that runs; None if none does."""
        self._settings = settings
        self._running = running
        self._one = 0 if running is None else running.ports.one
        # A pattern of names, as a certificate may have, is no name that could be resolved.
        self._public = [name for name in settings.names() if "*" not in name]

    def checks(self) -> list[Check]:
        """Return a check for each port, and one for the names."""
        return [
            Check("dns", self._names, SECONDS),
            *(Check(f"{name} port", partial(self._port, name), SECONDS) for name in self._ports()),
        ]

    def _ports(self) -> list[str]:
        """Return the ports to check: those that are open, and the nodes' behind the one port."""
        if self._running is None:
            return list(self._settings.ports())
        numbers = msgspec.to_builtins(self._running.ports)
        if not self._one:
            return list(numbers)
        own = [name for name, number in numbers.items() if number != self._one]
        return list(dict.fromkeys(["one", *_ALPN, *own]))

    async def _names(self) -> list[Finding]:
        found = []
        for name in self._public:
            try:
                addresses = await resolve(name)
            except OSError as error:
                what = f"{name} has no address: {error.strerror or error}"
                remedy = "make a DNS entry for it, or set another --address"
                found.append(Finding("dns", "FAIL", what, "dns_failed", remedy))
            else:
                found.append(ok("dns", f"{name} is {', '.join(addresses)}"))
        return found

    async def _port(self, name: str) -> list[Finding]:
        if self._running is None:
            return [await in_thread(lambda: self._free(name))]
        target = self._target(name, getattr(self._running.ports, name))
        own = [_ANYWHERE.get(host, host) for host in self._settings.host]
        here = await probe(own, target)
        if not here.reached:
            return [judge("this machine", target, here, _explain)]
        if not self._public:
            return [ok(target.check, f"open on this machine, port {target.port}")]
        public = self._public[0]
        try:
            there = await probe(await resolve(public), target)
        except OSError:
            return [ok(target.check, f"open on this machine, port {target.port}")]
        found = judge(public, target, there, _explain)
        if found.level == "FAIL" and found.code != "port_wrong":
            what = f"open here, but not by way of {found.what}"
            remedy = (
                f"some routers allow no such way; if 'fabric-client doctor' of a node says the "
                f"same: {found.remedy}"
            )
            return [Finding(target.check, "warn", what, "port_not_public", remedy)]
        return [found]

    def _free(self, name: str) -> Finding:
        """Judge the port of a server that does not run: it must be free to be opened."""
        setting = f"{name}_port"
        number = getattr(self._settings, setting)
        try:
            sockets, _ = bind(self._settings.host, number, setting=setting)
        except PortProblem as problem:
            what, remedy = str(problem).rstrip("."), f"end that program, or set {setting}"
            return Finding(f"{name} port", "FAIL", what, "port_taken", remedy)
        for sock in sockets:
            sock.close()
        return ok(f"{name} port", f"{number} is free, and opened when the server starts")

    def _target(self, name: str, port: int) -> Target:
        check = f"{name} port"
        if (name if port != self._one else "one") in self._settings.proxy_protocol:
            return Target(check, port, None)  # it answers proxies only
        context = DialContext()
        context.load_verify_locations(self._settings.data / "certs" / "ca.pem")
        context.set_alpn_protocols([_ALPN.get(name, "http/1.1")])
        expected = _NO_CERTIFICATE if name in _ALPN else ""
        return Target(check, port, context, SERVER_NAME, expected=expected)


def _explain(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"another server, or another program, answers ({error.verify_message}): its "
            "certificate is not of this server's CA"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({(error.reason or str(error)).lower().replace('_', ' ')})"
    return str(error) or type(error).__name__
