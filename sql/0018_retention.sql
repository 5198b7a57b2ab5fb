-- Times before which rows are final.  Only retention moves them, and only forward.
--   ledger: entries that arrived earlier are no longer written, and are deleted;
--   day, month, total: earlier rows of usage_by_hour are sums of a day, of a month (UTC), or of all
--   that an account ever used; `hour` is then the first second of the day or month, or 0.
CREATE TABLE borders (
    name TEXT NOT NULL PRIMARY KEY,
    before BIGINT NOT NULL                  -- Unix seconds, the beginning of a month
);
INSERT INTO borders (name, before) VALUES ('ledger', -9007199254740992);
INSERT INTO borders (name, before) VALUES ('day', -9007199254740992);
INSERT INTO borders (name, before) VALUES ('month', -9007199254740992);
INSERT INTO borders (name, before) VALUES ('total', -9007199254740992);

-- The months whose entries were compared with the sums, archived if so set, and deleted.
CREATE TABLE ledger_months (
    month BIGINT NOT NULL PRIMARY KEY,      -- its first second, Unix
    entries BIGINT NOT NULL,
    archive TEXT NOT NULL,                  -- the name of the file; '': there is none
    sha256 TEXT NOT NULL,                   -- of the file
    checked_at DOUBLE PRECISION NOT NULL,
    deleted_at DOUBLE PRECISION             -- NULL: some of its entries may still be here
);

-- Which server deletes, since when servers have looked at the clock without a gap, and the result.
CREATE TABLE retention (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    owner TEXT NOT NULL,
    lease_until DOUBLE PRECISION NOT NULL,
    watched_at DOUBLE PRECISION NOT NULL,
    watched_since DOUBLE PRECISION NOT NULL,
    finished_at DOUBLE PRECISION,           -- the end of the last run
    removed BIGINT NOT NULL,                -- rows, by that run
    problem TEXT NOT NULL                   -- why the last run failed; '': it did not
);
INSERT INTO retention (one, owner, lease_until, watched_at, watched_since, removed, problem)
VALUES (1, '', 0, 0, 0, 0, '');

CREATE INDEX invitations_by_end ON invitations (expires_at);
CREATE INDEX invitations_by_node ON invitations (node_id);
CREATE INDEX keys_revoked ON keys (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX keys_expiring ON keys (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX files_incomplete ON files (created_at) WHERE NOT complete;
CREATE INDEX batches_finished ON batches (finished_at) WHERE finished_at IS NOT NULL;
