-- What the first release remembers.  One text for SQLite and PostgreSQL: see README.md here.

-- Bumped by every change to keys, nodes and invitations, in the same transaction.  Servers poll it;
-- rows changed later than a known revision carry a higher one.
CREATE TABLE revision (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    number BIGINT NOT NULL
);
INSERT INTO revision (one, number) VALUES (1, 0);

-- API keys.  The key itself is shown once and never stored: hash is the SHA-256 of its text.
CREATE TABLE keys (
    id TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,                   -- the first characters of the key, to recognise it by
    hash BYTEA NOT NULL UNIQUE CHECK (length(hash) = 32),
    management BOOLEAN NOT NULL,            -- may manage the fabric; may not call models
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION,            -- NULL: never
    revoked_at DOUBLE PRECISION,            -- NULL: in use
    models TEXT,                            -- JSON array of model names; NULL: all of them
    revision BIGINT NOT NULL
);
CREATE INDEX keys_by_prefix ON keys (prefix);
CREATE INDEX keys_by_revision ON keys (revision);

CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    public_key_sha256 BYTEA NOT NULL,       -- of the key enrolled at joining
    created_at DOUBLE PRECISION NOT NULL,
    revoked_at DOUBLE PRECISION,
    epoch BIGINT NOT NULL,                  -- registrations so far; the last one has this number
    last_seen_at DOUBLE PRECISION,          -- the server's clock
    platform TEXT NOT NULL,
    version TEXT NOT NULL,
    revision BIGINT NOT NULL
);
CREATE INDEX nodes_by_revision ON nodes (revision);

-- Every model that a node has ever served: what is known, though perhaps nobody is up for it now.
CREATE TABLE served_models (
    node_id TEXT NOT NULL REFERENCES nodes (id),
    model TEXT NOT NULL,
    PRIMARY KEY (node_id, model)
);

-- Join tokens: the hash of the secret in each.  Used once, by the node named.
CREATE TABLE invitations (
    id TEXT NOT NULL PRIMARY KEY,
    secret_hash BYTEA NOT NULL UNIQUE CHECK (length(secret_hash) = 32),
    name TEXT,                              -- the name wished for the node
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    used_at DOUBLE PRECISION,
    node_id TEXT REFERENCES nodes (id)
);

-- One row for each request that carried a key; never updated, never deleted: bills are made of it.
-- No reference to keys or nodes: entries may arrive late, and must never be turned away.
CREATE TABLE ledger (
    request_id TEXT NOT NULL PRIMARY KEY,
    at DOUBLE PRECISION NOT NULL,           -- when the request arrived
    account TEXT NOT NULL,
    key_id TEXT NOT NULL,
    node_id TEXT,
    engine TEXT,
    model TEXT NOT NULL,
    path TEXT NOT NULL,
    stream BOOLEAN NOT NULL,
    status BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT,
    attempts BIGINT NOT NULL,
    prompt_tokens BIGINT,                   -- NULL: not known
    completion_tokens BIGINT,
    queue_ms DOUBLE PRECISION NOT NULL,
    first_byte_ms DOUBLE PRECISION,         -- NULL: no byte came
    total_ms DOUBLE PRECISION NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL
);
CREATE INDEX ledger_by_time ON ledger (at, request_id);

-- What nodes said of themselves.  Deleted when old.
CREATE TABLE heartbeats (
    node_id TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL,           -- when it arrived, the server's clock
    cpu_percent DOUBLE PRECISION NOT NULL,
    memory_percent DOUBLE PRECISION NOT NULL,
    active BIGINT NOT NULL,
    slots BIGINT NOT NULL,
    payload TEXT NOT NULL,                  -- the whole message, JSON
    PRIMARY KEY (node_id, epoch, seq)
);
CREATE INDEX heartbeats_by_time ON heartbeats (at);
