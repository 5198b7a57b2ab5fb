"""Records to put into stores and buses."""

from __future__ import annotations

import hashlib
from typing import Any

from fabric_server.storage.rows import AccountRow, InvitationRow, KeyRow, NodeRow
from ledger.records import HeartbeatRecord, LedgerEntry
from protocol.messages import Gpu, Heartbeat

NOON = 1_750_000_000.0 - 1_750_000_000.0 % 86_400 + 43_200


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def account(name: str = "acme", **changes: Any) -> AccountRow:
    values: dict[str, Any] = {"name": name, "note": "", "created_at": NOON}
    return AccountRow(**(values | changes))


def key(name: str = "laptop", **changes: Any) -> KeyRow:
    values: dict[str, Any] = {
        "id": f"key_{name}",
        "account": "default",
        "name": name,
        "prefix": f"sk-fab-{name:.6}",
        "hash": digest(name),
        "management": False,
        "created_at": NOON,
    }
    return KeyRow(**(values | changes))


def node(name: str = "attic", **changes: Any) -> NodeRow:
    values: dict[str, Any] = {
        "id": f"node_{name}",
        "name": name,
        "public_key_sha256": digest(name),
        "created_at": NOON,
        "platform": "linux",
        "version": "0.1.0",
    }
    return NodeRow(**(values | changes))


def invitation(secret: str = "secret", **changes: Any) -> InvitationRow:
    values: dict[str, Any] = {
        "id": f"inv_{secret}",
        "secret_hash": digest(secret),
        "created_at": NOON,
        "expires_at": NOON + 3600,
    }
    return InvitationRow(**(values | changes))


def entry(number: int = 1, **changes: Any) -> LedgerEntry:
    values: dict[str, Any] = {
        "request_id": f"req_{number:08d}",
        "at": NOON + number,
        "account": "default",
        "key_id": "key_laptop",
        "node_id": "node_attic",
        "engine": "ollama",
        "model": "llama3.2:3b",
        "path": "/v1/chat/completions",
        "stream": True,
        "status": 200,
        "outcome": "ok",
        "error": None,
        "attempts": 1,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "queue_ms": 0.25,
        "first_byte_ms": 31.5,
        "total_ms": 500.125,
        "bytes_in": 300,
        "bytes_out": 4000,
    }
    return LedgerEntry(**(values | changes))


def beat(
    seq: int = 1, *, node: str = "node_attic", epoch: int = 1, **changes: Any
) -> HeartbeatRecord:
    values: dict[str, Any] = {
        "seq": seq,
        "at": NOON + seq,
        "cpu_percent": 12.5,
        "memory_bytes": 1000,
        "memory_used_bytes": 250,
        "disk_bytes": 1000,
        "disk_used_bytes": 10,
        "network_in_bytes_per_second": 1.5,
        "network_out_bytes_per_second": 2.5,
        "slots": 4,
        "active": 1,
        "engines_healthy": 1,
        "engines": 1,
        "loaded_models": ["llama3.2:3b"],
        "gpus": [Gpu("RTX 4090", 24_000_000_000, 1, 50.0, 60.0, 300.0)],
    }
    return HeartbeatRecord(node, epoch, seq, NOON + seq, Heartbeat(**(values | changes)))
