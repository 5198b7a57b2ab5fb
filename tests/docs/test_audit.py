"""``make audit``, asked of a server that answers as OSV and as a package index do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.audit.__main__ import Pin, main, pins

LOCK = """\
aiohttp==3.0.0 \\
    --hash=sha256:00
Typer[all]==1.2 ; python_version >= "3.11" \\
    --hash=sha256:00
"""


class Index(BaseHTTPRequestHandler):
    known: ClassVar[dict[str, list[str]]] = {}
    serves_osv = True

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["content-length"])))["queries"]
        ids = [self.known.get(query["package"]["name"], []) for query in queries]
        results = [{"vulns": [{"id": id} for id in some]} if some else {} for some in ids]
        self._answer(200 if self.serves_osv else 404, {"results": results})

    def do_GET(self) -> None:
        _, name, _, _ = self.path.split("/")
        ids = self.known.get(name, [])
        vulnerabilities: list[Any] = [{"id": id, "withdrawn": None} for id in ids]
        vulnerabilities.append({"id": "PYSEC-OLD", "withdrawn": "2020-01-01"})
        self._answer(200, {"vulnerabilities": vulnerabilities})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def serving(known: dict[str, list[str]], *, osv: bool) -> Iterator[str]:
    handler = type("Handler", (Index,), {"known": known, "serves_osv": osv})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pins_are_read_from_lock_files() -> None:
    assert pins([LOCK, LOCK]) == [Pin("aiohttp", "3.0.0"), Pin("typer", "1.2")]


@pytest.mark.parametrize("osv", [True, False])
@pytest.mark.parametrize("known", [{}, {"aiohttp": ["PYSEC-1"]}])
def test_a_known_vulnerability_fails_the_audit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    osv: bool,
    known: dict[str, list[str]],
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK)
    with serving(known, osv=osv) as index:
        code = main([str(lock), "--osv", f"{index}/v1/querybatch", "--index", index])
    said = capsys.readouterr().out
    assert code == bool(known)
    assert ("aiohttp 3.0.0: PYSEC-1" in said) is bool(known)
    assert f"(from {'OSV' if osv else 'the index'})" in said


def test_an_audit_without_data_says_so_and_fails_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nowhere = "http://127.0.0.1:1"
    assert main(["--osv", nowhere, "--index", nowhere]) == 0
    assert "NOT AUDITED" in capsys.readouterr().out
