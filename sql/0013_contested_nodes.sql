-- Two machines have registered with this node's key: since when, and from which addresses.  It is
-- refused until the operator settles it or revokes the node.
ALTER TABLE nodes ADD COLUMN contested_at DOUBLE PRECISION;
ALTER TABLE nodes ADD COLUMN contested_by TEXT NOT NULL DEFAULT '';

-- The hash of the key in the node's newest certificate, until the node uses it; then it replaces
-- public_key_sha256, and what was issued for the key before is worth nothing.
ALTER TABLE nodes ADD COLUMN next_key_sha256 BYTEA;

-- When the node last began to serve it: of too many, the oldest are deleted.
ALTER TABLE served_models ADD COLUMN seen_at DOUBLE PRECISION NOT NULL DEFAULT 0;
