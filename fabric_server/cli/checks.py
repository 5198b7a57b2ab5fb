"""The checks of ``fabric-server doctor``, but those of its ports (``port_checks``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fabric_server.acme.findings import CHECK
from fabric_server.cli.endpoints import Ready, last_start
from fabric_server.cli.port_checks import PortChecks
from fabric_server.cli.retention_checks import check_retention
from fabric_server.cli.user_certificate import acme_finding, chosen, seen
from fabric_server.config import Config
from fabric_server.data_directory import has_authority
from fabric_server.net.descriptor_plan import MIN_API, MIN_NODES, MIN_PUBLIC, make_plan
from fabric_server.net.takeover import About, TakeoverProblem, running_server
from fabric_server.pki.certificates import CertificateProblem, Fact, fact
from fabric_server.storage.connect import open_cache, open_store
from fabric_server.storage.rows import NodeRow
from fabric_server.storage.store import SqlStore
from protocol.findings import CLOCK_SECONDS, clock
from runtime.descriptors import MAX_FILES, allow_many_files, open_files_limit
from runtime.doctor import Check, check_disk, examine, in_thread
from runtime.errors import BackendError, NoStore
from runtime.extras import MissingExtra, needed_by
from runtime.findings import DAY, Finding, certificate_dates, descriptors, ok
from runtime.settings import SettingsError
from runtime.shown import without_password
from runtime.version import COMPILED, VERSION
from sql import migrations
from sql.connect import open_database

BACKEND_SECONDS = 15.0
MOST_NODES = 20
"""Nodes whose problems are listed; more are counted."""
MOST_CLOCKS = 50
"""Nodes whose clocks are compared."""


async def find(settings: Config) -> list[Finding]:
    """Run all checks."""
    try:
        known = has_authority(settings.data)
        settings.names()
        running = await in_thread(lambda: running_server(settings.data))
    except (SettingsError, TakeoverProblem) as error:
        remedy = "run this as the server's user, or as root"
        return [Finding("data", "FAIL", str(error).rstrip("."), "data_unreadable", remedy)]
    last = last_start(settings.data)
    checks = [
        Check("server", partial(_server, settings, known, running, last)),
        Check("disk", partial(check_disk, settings.data)),
        Check("descriptors", partial(_descriptors, settings, running)),
        Check("store", partial(_store, settings), BACKEND_SECONDS),
        Check("cache", partial(_cache, settings), BACKEND_SECONDS),
        Check("bus", partial(_bus, settings), BACKEND_SECONDS),
    ]
    if known:
        ports = PortChecks(settings, None if running is None else last)
        checks += [Check("certificates", partial(_certificates, settings)), *ports.checks()]
    return await examine(checks)


async def _server(
    settings: Config, known: bool, running: About | None, last: Ready | None
) -> list[Finding]:
    if not known:
        remedy = "set --data as the server has it; 'fabric-server init' or 'up' makes a new one"
        what = f"no server was ever started with {settings.data}"
        return [Finding("server", "FAIL", what, "no_server", remedy)]
    if running is None:
        remedy = "start it with 'fabric-server up'"
        return [Finding("server", "warn", "it is not running", "not_running", remedy)]
    if last is None or last.version == VERSION:
        build = "compiled" if COMPILED else "not compiled"
        what = f"it runs as process {running.pid or 'unknown'}, version {VERSION}, {build}"
        return [ok("server", what)]
    what = f"version {last.version} runs, but {VERSION} is installed"
    remedy = "'fabric-server up --takeover' changes to it without an outage"
    return [Finding("server", "warn", what, "versions_differ", remedy)]


# ── this machine ──────────────────────────────────────────────────────────────────────────────


async def _descriptors(settings: Config, running: About | None) -> list[Finding]:
    allow_many_files()
    limit = open_files_limit()
    if running is not None and running.pid:
        limit = _limit_of(running.pid) or limit
    plan = make_plan(limit, settings)
    if plan.cut:
        what = f"{limit:,} open files are too few for the settings {', '.join(plan.cut)}"
        remedy = "raise the limit (LimitNOFILE= of the systemd unit), or lower the settings"
        return [Finding("descriptors", "warn", what, "few_descriptors", remedy)]
    return [descriptors(limit, 8 * (MIN_NODES + MIN_API + MIN_PUBLIC) + 256)]


def _limit_of(pid: int) -> int | None:
    """Return the limit of open files of a process; None where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return MAX_FILES if soft == "unlimited" else int(soft)
    return None


# ── certificates ──────────────────────────────────────────────────────────────────────────────


async def _certificates(settings: Config) -> list[Finding]:
    certs = settings.data / "certs"
    own = "restart the server, which makes a new one; see docs/operations.md"
    return [
        *_certificate("CA", certs / "ca.pem", own),
        *_certificate("certificate for nodes", certs / "server.pem", own),
        *_public(settings),
    ]


def _certificate(check: str, path: Path, remedy: str) -> list[Finding]:
    try:
        found = fact(check, path)
    except CertificateProblem as problem:
        return [_damaged(check, problem)]
    return [certificate_dates(check, found.begins, found.ends, time.time(), remedy)]


def _public(settings: Config) -> list[Finding]:
    """Judge what users see: the operator's certificate, an ACME CA's, or the fabric's own."""
    check, which = CHECK, chosen(settings)
    remedy = "get a new one, and run 'fabric-server reload'"
    if which.of == "acme":
        remedy = "see the log for the reason; 'fabric-server reload' tries again"
    try:
        found = seen(settings, which)
    except CertificateProblem as problem:
        return [_damaged(check, problem)]
    foreign = which.of != "fabric" and found.path == Path(which.path)
    dates = _certificate(check, found.path, remedy) if foreign else []
    if which.of == "acme" and (failed := acme_finding(settings.data, time.time())) is not None:
        dates.append(failed)
    names = settings.names_to_certify() if settings.acme else settings.names()
    missing = [name for name in names if not _names(found, name)]
    if missing:
        how = "get one that names it" if foreign else "start 'up' with --address"
        what = f"it does not name {', '.join(missing)}"
        return [*dates, Finding(check, "warn", what, "name_missing", how)]
    if not foreign:
        what = "signed by the fabric's own CA: users need certs/ca.pem, see 'certs show'"
        return [*dates, ok(check, what)]
    return dates


def _names(found: Fact, name: str) -> bool:
    parent = name.partition(".")[2]
    return name in found.names or (bool(parent) and f"*.{parent}" in found.names)


def _damaged(check: str, problem: CertificateProblem) -> Finding:
    remedy = "restore it from the backup"
    return Finding(check, "FAIL", str(problem).rstrip("."), "certificate_damaged", remedy)


# ── store, cache and bus ──────────────────────────────────────────────────────────────────────


def _away(check: str, error: BaseException) -> Finding:
    remedy = f"start it, or correct the setting {check}"
    return Finding(check, "FAIL", str(error).rstrip("."), f"{check}_away", remedy)


async def _store(settings: Config) -> list[Finding]:
    url = without_password(settings.store_url)
    try:
        database = await open_database(settings.store_url, create=False)
        try:
            known = migrations.find(migrations.directory())
            pending = [
                one for one in await migrations.status(database, known) if not one.applied_at
            ]
        finally:
            await database.close()
        if pending:
            what = f"{len(pending)} migrations of {url} are not applied"
            remedy = "'fabric-server db migrate' or the next start applies them; make a backup"
            return [Finding("store", "warn", what, "migrations_pending", remedy)]
        store = await open_store(settings.store_url, create=False)
        try:
            return [
                ok("store", url),
                *await check_retention(settings, store),
                *await _nodes(settings, store),
            ]
        finally:
            await store.close()
    except NoStore as error:
        remedy = "set --data or --store as the server has them"
        return [Finding("store", "FAIL", str(error).rstrip("."), "no_store", remedy)]
    except (BackendError, MissingExtra) as error:
        return [_away("store", error)]


async def _cache(settings: Config) -> list[Finding]:
    try:
        cache = await open_cache(settings.cache)
        await cache.close()
    except (BackendError, MissingExtra) as error:
        return [_away("cache", error)]
    return [ok("cache", without_password(settings.cache))]


async def _bus(settings: Config) -> list[Finding]:
    url = without_password(settings.bus)
    try:
        if settings.bus.startswith("kafka:"):
            with needed_by("Kafka"):
                from ledger.kafka_cluster import cluster_at
            await cluster_at(settings.bus, "bus").reach()
    except (BackendError, MissingExtra) as error:
        return [_away("bus", error)]
    waiting = await in_thread(lambda: _size(settings.data))
    share = waiting / settings.spool_limit
    what = f"{url}, {waiting / 2**20:,.0f} MiB wait in the spool"
    if share < 0.5:
        return [ok("bus", what)]
    remedy = "the store or Kafka takes too little: see the log; at the limit requests are refused"
    return [Finding("bus", "FAIL" if share > 0.9 else "warn", what, "spool_fills", remedy)]


def _size(data: Path) -> int:
    """Return the bytes of all spools; a file that is deleted meanwhile counts nothing."""
    total = 0
    for path in data.glob("spool*/**/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


# ── nodes ─────────────────────────────────────────────────────────────────────────────────────


async def _nodes(settings: Config, store: SqlStore) -> list[Finding]:
    days = settings.keep_nodes_days
    listed = await store.nodes(time.time() - days * DAY if days else None)
    nodes = [node for node in listed if node.revoked_at is None]
    if not nodes:
        remedy = "'fabric-server nodes invite' makes a token for one"
        return [Finding("nodes", "warn", "no node has joined", "no_nodes", remedy)]
    online = [node for node in nodes if node.online]
    found = [_node(node) for node in nodes if not node.online or node.problem or node.contested_at]
    more = len(found) - MOST_NODES
    if more > 0:
        what, remedy = f"{more} more have problems", "'fabric-server nodes list' shows all"
        found = [*found[:MOST_NODES], Finding("nodes", "warn", what, "node_problem", remedy)]
    return [
        ok("nodes", f"{len(online)} of {len(nodes)} are connected"),
        *found,
        *await _clocks(store, online[:MOST_CLOCKS]),
    ]


def _node(node: NodeRow) -> Finding:
    who = f"{node.id}, {node.name}: "
    if node.contested_at is not None:
        what = f"{who}two machines use its key"
        remedy = "'fabric-server nodes settle', or revoke"
        return Finding("nodes", "warn", what, "node_contested", remedy)
    if not node.online:
        remedy = "run 'fabric-client doctor' there"
        return Finding("nodes", "warn", f"{who}not connected", "node_offline", remedy)
    return Finding("nodes", "warn", f"{who}{node.problem}", "node_problem")


async def _clocks(store: SqlStore, nodes: Sequence[NodeRow]) -> list[Finding]:
    """Compare this machine's clock with those of the nodes, by their last heartbeats."""
    ahead = []
    for node in nodes:
        for record in await store.heartbeats(node.id, limit=1):
            ahead.append(record.at - record.heartbeat.at)
    if not ahead:
        return []
    wrong = [one for one in ahead if abs(one) >= CLOCK_SECONDS]
    if len(ahead) == 1 or 2 * len(wrong) > len(ahead):
        return [clock(statistics.median(ahead), "this machine's", "its nodes'")]
    return [ok("clock", f"{len(ahead) - len(wrong)} of {len(ahead)} nodes' clocks agree with it")]
