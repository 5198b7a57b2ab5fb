"""A real Kafka for tests: one broker that is its own controller (KRaft), started within seconds.

    with KafkaServer(tmp_path) as kafka:
        kafka.url                          # kafka://127.0.0.1:…
        kafka.kill()                       # and start() again: what was acknowledged is still there

The first use on a machine fetches the broker's jars with Maven, 46 MB.  Topics are not made by
using them: a test that needs one creates it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.backends import LOG_END, Daemon, MissingProgram, answers, cache, free_port, locked
from tests.lab.backends import provide as provide_program

POM = Path(__file__).with_name("kafka-pom.xml")
# A broker lives too short for the better of Java's two compilers to pay: starting takes 3.3 s
# without it and 5.6 s with it (two busy cores, 2026-11-21).
JAVA = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
LOGGING = {
    "defaultLogLevel": "warn",
    "log.kafka.server.KafkaRaftServer": "info",  # logs READY
    "showDateTime": "true",
    "dateTimeFormat": "HH:mm:ss.SSS",
}
READY = "Kafka Server started"
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "2",
    "group.initial.rebalance.delay.ms": "0",
    # The cleaner would take 128 MB of the heap for itself.
    "log.cleaner.dedupe.buffer.size": "4194304",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    # A killed broker that comes back is turned away until the session of its former life is over.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "200",
}


class KafkaServer(Daemon):
    name = "kafka"
    start_seconds = 60

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._controller_port = free_port()

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        listener = f"PLAINTEXT://127.0.0.1:{self.port}"
        controller = f"127.0.0.1:{self._controller_port}"
        settings = {
            **SETTINGS,
            "listeners": f"{listener},CONTROLLER://{controller}",
            "advertised.listeners": listener,
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(data),
        }
        write_properties(self._properties, settings)
        # All that `kafka-storage format` does here, but without a second Java for 1.3 s.
        if not (data / "meta.properties").exists():
            identity = {"version": "1", "node.id": "1"}
            identity |= {"cluster.id": new_id(), "directory.id": new_id()}
            write_properties(data / "meta.properties", identity)

    def _command(self) -> Sequence[str]:
        logging = (f"-Dorg.slf4j.simpleLogger.{name}={LOGGING[name]}" for name in LOGGING)
        jars = f"{provide()}/*"
        return [java(), *JAVA, *logging, "-cp", jars, "kafka.Kafka", str(self._properties)]

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    def _ready(self) -> bool:
        return READY in self._output() and answers(self.port)


def write_properties(path: Path, values: dict[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))


def new_id() -> str:
    """A UUID as Kafka writes it, which never begins with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22]).startswith("-"):
        pass
    return text


def java() -> str:
    find = functools.partial(shutil.which, "java")
    return provide_program("kafka", "Java (for Kafka)", find, "default-jre-headless")


def provide() -> Path:
    """The folder with the broker's jars, fetched if need be."""
    home = cache() / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:10]}"
    if not home.exists():
        with locked(home.name):
            if not home.exists():
                fetch(home)
    return home


def fetch(home: Path) -> None:
    """Makes `home` all at once, so that a download that was cut short leaves nothing like it."""
    find = functools.partial(shutil.which, "mvn")
    maven = provide_program("kafka", "Maven (for Kafka's jars)", find, "maven")
    with tempfile.TemporaryDirectory(dir=home.parent) as work:
        command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={work}/jars", "-DincludeScope=runtime"]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        done = subprocess.run(command, **options, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise MissingProgram(
                "Kafka's jars could not be fetched. Let Maven reach a repository, or set "
                "FABRIC_TEST_KAFKA_URL to the URL of a broker for those tests that do it no harm; "
                f"Maven's output:\n{done.stdout[-LOG_END:]}"
            )
        (Path(work) / "jars").rename(home)
