"""The systems under test: each puts something between a user and the mock engine.

`start` brings a system up at a `Site`, which also ends it, and returns when it answers.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import venv
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks import consumer as consumer_bench
from benchmarks.canned import BURST_MODEL, CROWD_MODEL, MODEL, PACED_MODEL
from benchmarks.processes import CACHE, Command, Site
from runtime.version import VERSION
from tests.lab.kafka_server import KafkaServer
from tests.lab.postgres_server import PostgresServer
from tests.lab.redis_server import RedisServer

VLLM_ROUTER = "0.1.17"
LITELLM = "1.108.0"
SERVER = [sys.executable, "-m", "fabric_server"]
NODE = [sys.executable, "-m", "fabric_client"]
RIVALS = Path(__file__).with_name("rivals")


MAX_SLOTS = 4096
"""More than a node's 16 tunnels can carry is of no use."""


@dataclass(frozen=True)
class Target:
    """Where load goes."""

    url: str
    engine: str
    """Where it ends."""
    front: subprocess.Popen[bytes] | None
    """The process users connect to; None for the engine itself."""
    key: str | None = None
    at_node: bool = False
    """Whether the load comes from the node's place."""
    add_node: Callable[[int], subprocess.Popen[bytes]] | None = None
    """Starts one more node of the same system, idle, with so many slots."""
    node: subprocess.Popen[bytes] | None = None
    """The process beside the engine, if there is one."""
    rewrites: bool = False
    """The system writes answers anew: they say the same as the engine's in other bytes."""


class System(ABC):
    name: str
    far = False
    """Whether it can reach an engine behind NAT."""
    own = False
    """The system is of this repository: a run without it has failed."""

    @abstractmethod
    def start(self, site: Site, engine: str) -> Target:
        """Raises RuntimeError when it cannot run here, with the reason."""

    @abstractmethod
    def version(self) -> str: ...


class Direct(System):
    name = "engine asked directly"
    far = own = True

    def start(self, site: Site, engine: str) -> Target:
        return Target(engine, engine, None)

    def version(self) -> str:
        return f"Python {sys.version.split()[0]}, uvloop {version('uvloop')}"


def nginx(site: Site, template: Path, **values: str) -> subprocess.Popen[bytes]:
    """Starts one with a configuration whose `@name@`s are filled in."""
    need("nginx")
    work = site.folder()
    self_signed(work)
    values["user"] = "user root;" if os.geteuid() == 0 else ""  # it keeps files in `work`
    text = template.read_text()
    for name, value in {**values, "work": str(work)}.items():
        text = text.replace(f"@{name}@", value)
    (work / "nginx.conf").write_text(text)
    return site.start(["nginx", "-p", work, "-c", work / "nginx.conf", "-e", "stderr"])


class Nginx(System):
    def __init__(self, hops: int) -> None:
        self.name = "nginx, one hop" if hops == 1 else f"nginx, {hops} hops, TLS between"
        self.hops = hops

    def start(self, site: Site, engine: str) -> Target:
        ports = site.free_ports(self.hops)
        next_hop, scheme = urlsplit(engine).netloc, "http"
        hops: list[subprocess.Popen[bytes]] = []
        """The one beside the engine first."""
        for port in reversed(ports):
            first = port == ports[0]
            listen = f"127.0.0.1:{port} {'' if first else 'ssl'} backlog=2048"
            hops.append(self._hop(site, listen=listen, next=next_hop, scheme=scheme))
            next_hop, scheme = f"127.0.0.1:{port}", "https"
        url, front = f"http://127.0.0.1:{ports[0]}", hops[-1]
        site.wait_for_answer(f"{url}/v1/models", front)
        return Target(url, engine, front, node=hops[0] if len(hops) > 1 else None)

    def _hop(self, site: Site, **values: str) -> subprocess.Popen[bytes]:
        return nginx(site, RIVALS / "nginx.conf", **values)

    def version(self) -> str:
        told = subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr
        return re.sub(r".*nginx/", "nginx ", told.strip())


class VllmRouter(System):
    name = "vllm-router"

    def start(self, site: Site, engine: str) -> Target:
        port, metrics_port = site.free_ports(2)
        command: list[str | Path] = [
            installed("vllm-router", VLLM_ROUTER),
            "--worker-urls",
            engine,
            "--policy",
            "round_robin",
        ]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
        command += ["--max-concurrent-requests", "4096", "--worker-startup-check-interval", "1"]
        front = site.start(command, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        site.wait_for_answer(f"{url}/v1/models", front)
        return Target(url, engine, front)

    def version(self) -> str:
        return f"vllm-router {VLLM_ROUTER}"


class LiteLLM(System):
    """The proxy of LiteLLM: one hop, no tunnel; in Python, with keys and routing as the fabric has.

    Set up as its documentation says for production and for high throughput: a worker of Uvicorn
    for each core, `LITELLM_MODE=PRODUCTION`, logs of errors only, a master key, no callbacks.  It
    has no database, so it keeps no record of requests, which the fabric does.
    """

    name = "LiteLLM proxy"
    READY_SECONDS = 180
    """Each worker imports for ten seconds of processor time and more."""

    def start(self, site: Site, engine: str) -> Target:
        (port,) = site.free_ports(1)
        work = site.folder()
        config, log = work / "config.json", work / "log"  # JSON is YAML
        config.write_text(json.dumps(self._config(engine)))
        key = f"sk-{secrets.token_hex(16)}"
        environ = {
            "LITELLM_MASTER_KEY": key,
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches prices from elsewhere
        }
        command: list[str | Path] = [
            installed("litellm", LITELLM, extra="proxy"),
            "--config",
            config,
            "--host",
            "127.0.0.1",
        ]
        command += ["--port", str(port), "--num_workers", str(len(os.sched_getaffinity(0)))]
        # By default Uvicorn kills a worker that is still importing after five seconds.
        command += ["--timeout_worker_healthcheck", str(self.READY_SECONDS)]
        with log.open("wb") as errors:  # a traceback for each request that its client gives up
            front = site.start(command, environ=environ, stderr=errors, process_group=0)
        url = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        question = json.dumps({"model": MODEL, "messages": []})  # its first answer takes a second
        ready = f"{url}/v1/chat/completions"
        try:
            site.wait_for_answer(ready, front, headers, question, self.READY_SECONDS)
        except RuntimeError:
            sys.stderr.write(log.read_text(errors="replace")[-2000:])
            raise
        return Target(url, engine, front, key, rewrites=True)

    @staticmethod
    def _config(engine: str) -> dict[str, object]:
        return {
            "model_list": [
                {
                    "model_name": model,
                    "litellm_params": {
                        "model": f"openai/{model}",
                        "api_base": f"{engine}/v1",
                        "api_key": "none",
                    },
                }
                for model in (MODEL, BURST_MODEL, PACED_MODEL, CROWD_MODEL)
            ],
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
            "litellm_settings": {"request_timeout": 600, "callbacks": []},
        }

    def version(self) -> str:
        return f"LiteLLM {LITELLM}"


class DialBack(System):
    name = "dial-back per request"
    far = own = True

    def start(self, site: Site, engine: str) -> Target:
        work = site.folder()
        certificate, key = self_signed(work)
        public, port = site.free_ports(2)
        program: Command = [sys.executable, "-m", "benchmarks.rivals.dialback"]
        front, _ = site.start_and_read(
            [*program, "server", str(public), str(port), certificate, key]
        )
        node = [*program, "node", site.server_address, str(port), certificate]
        site.start([*node, str(urlsplit(engine).port)], at_node=True)
        url = f"http://127.0.0.1:{public}"
        site.wait_for_answer(f"{url}/v1/models", front)
        return Target(url, engine, front)

    def version(self) -> str:
        return "benchmarks/rivals/dialback.py"


class Fabric(System):
    name = "Fabric"
    far = own = True
    up: Command = (*SERVER, "up")
    serve: Command = (*NODE, "run")
    """Its two programs."""
    key_options: tuple[str, ...] = ()

    def back_ends(self, site: Site) -> dict[str, str]:
        """Settings that name other back ends than the embedded ones."""
        return {}

    def environ(self, site: Site) -> dict[str, str]:
        """Of the server, and of commands for it."""
        control, proxy, public, api = map(str, site.free_ports(4))
        return {
            "FABRIC_SERVER_DATA": str(site.folder()),
            "FABRIC_SERVER_HOST": "0.0.0.0",
            "FABRIC_SERVER_ADDRESS": site.server_address,
            "FABRIC_SERVER_CONTROL_PORT": control,
            "FABRIC_SERVER_PROXY_PORT": proxy,
            "FABRIC_SERVER_PUBLIC_PORT": public,
            "FABRIC_SERVER_API_PORT": api,
            "FABRIC_SERVER_LOG_LEVEL": "warning",
            **self.back_ends(site),
        }

    def start_server(self, site: Site, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        server = site.start(self.up, environ=environ)
        api = environ["FABRIC_SERVER_API_PORT"]
        site.wait_for_answer(f"http://127.0.0.1:{api}/health/live", server)
        return server

    def start(self, site: Site, engine: str) -> Target:
        environ = {
            **self.environ(site),
            "FABRIC_NODE_ENGINE": engine,
            "FABRIC_NODE_SLOTS": str(MAX_SLOTS),
            "FABRIC_NODE_LOG_LEVEL": "warning",
        }
        front = self.start_server(site, environ)
        created = site.run(
            [*SERVER, "keys", "create", "bench", "--json", *self.key_options], environ=environ
        )
        key = json.loads(created)["text"]
        node = self._add_node(site, environ)

        def add_node(slots: int) -> subprocess.Popen[bytes]:
            return self._add_node(site, {**environ, "FABRIC_NODE_SLOTS": str(slots)})

        url = f"http://127.0.0.1:{environ['FABRIC_SERVER_PUBLIC_PORT']}"
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        question = json.dumps({"model": MODEL, "messages": []})
        # A model is listed before its node's tunnels stand, so only an answer tells that they do.
        site.wait_for_answer(f"{url}/v1/chat/completions", front, headers, question)
        return Target(url, engine, front, key, add_node=add_node, node=node)

    def _add_node(self, site: Site, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        invited = site.run([*SERVER, "nodes", "invite", "--json"], environ=environ)
        at_node = {**environ, "FABRIC_NODE_DATA": str(site.folder())}
        join = [*NODE, "join", json.loads(invited)["token"], "--json"]
        site.run(join, at_node=True, environ=at_node)
        return site.start(self.serve, at_node=True, environ=at_node)

    def version(self) -> str:
        return f"fabric {VERSION}"


class Everything(Fabric):
    """With what a key must be given to have it: limits, and streams that go on elsewhere."""

    name = "Fabric, key with limits and failover"
    far = False
    key_options = ("--failover", "continue", "--requests-per-minute", "1000000000",
                   "--tokens-per-minute", "1000000000")  # fmt: skip


class Bare(Fabric):
    """Server and node with all off that `bare.py` lists."""

    name = "Fabric, bare"
    far = False
    up = (sys.executable, "-m", "benchmarks.bare", "server")
    serve = (sys.executable, "-m", "benchmarks.bare", "node")

    def back_ends(self, site: Site) -> dict[str, str]:
        return {"FABRIC_SERVER_BUS": "memory://"}


class BareRouting(Fabric):
    """Without what serves to choose engines and to keep answers alive; spool and reasoning on."""

    name = "Fabric, bare routing"
    far = False
    up = Bare.up
    serve = (sys.executable, "-m", "benchmarks.bare", "chat-node")


class FullStack(Fabric):
    """With PostgreSQL, Redis, Kafka and a consumer, on the same cores as all the rest.

    The consumer and what it writes to may come late and so have the lowest priority, as on a server
    where requests matter more than their accounting.
    """

    name = "Fabric, PostgreSQL, Redis, Kafka"
    far = False

    WARM_RECORDS = 200_000
    """Moved before anything is measured: a JVM that has just started is busy with itself."""

    def back_ends(self, site: Site) -> dict[str, str]:
        postgres = site.enter(PostgresServer(site.folder(), durable=True))
        redis = site.enter(RedisServer(site.folder()))
        kafka = site.enter(KafkaServer(site.folder()))
        os.setpriority(os.PRIO_PROCESS, postgres.pid, 19)
        urls = {"STORE": postgres.url, "BUS": kafka.url}
        (port,) = site.free_ports(1)
        consumer = {f"FABRIC_CONSUMER_{name}": url for name, url in urls.items()}
        consumer |= {"FABRIC_CONSUMER_PORT": str(port), "FABRIC_CONSUMER_LOG_LEVEL": "warning"}
        process = site.start([sys.executable, "-m", "consumer"], environ=consumer)
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
        site.wait_for_answer(f"http://127.0.0.1:{port}/health/ready", process)
        asyncio.run(consumer_bench.warm(kafka.url, postgres.url, self.WARM_RECORDS))
        return {
            "FABRIC_SERVER_CACHE": redis.url,
            **{f"FABRIC_SERVER_{name}": url for name, url in urls.items()},
        }


SYSTEMS: dict[str, System] = {
    "direct": Direct(),
    "fabric": Fabric(),
    "everything": Everything(),
    "bare-routing": BareRouting(),
    "bare": Bare(),
    "fabric-stack": FullStack(),
    "nginx1": Nginx(1),
    "nginx2": Nginx(2),
    "vllm-router": VllmRouter(),
    "litellm": LiteLLM(),
    "dialback": DialBack(),
}


COMPARED = ("direct", "fabric", "nginx2", "vllm-router", "litellm")
"""What people choose between; the slowest is the last, as it may be late with what it has begun."""


def installed(name: str, version: str, extra: str = "") -> Path:
    """Return a program of PyPI, in a virtual environment of its own: it needs other versions."""
    home = CACHE / f"{name}-{version}"
    if not (home / "complete").exists():
        venv.create(home, with_pip=True, clear=True)
        package = f"{name}[{extra}]" if extra else name
        pip: Command = [home / "bin" / "pip", "install", "-q", f"{package}=={version}"]
        if subprocess.run(pip).returncode:
            raise RuntimeError(f"{name} {version} could not be installed; the reason is above")
        (home / "complete").touch()
    return home / "bin" / name


def need(program: str) -> None:
    """Installs a Debian package that is named as its program, where that is allowed."""
    if shutil.which(program):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", program]):
            subprocess.run(["apt-get", *command], stdout=subprocess.DEVNULL)
    if not shutil.which(program):
        raise RuntimeError(f"{program} is not installed (Debian: apt install {program})")


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for "server", P-256 as the fabric's own, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("server")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"
