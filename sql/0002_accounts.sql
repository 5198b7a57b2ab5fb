-- Accounts: whom keys belong to.  A key works while it and its account are enabled.

CREATE TABLE accounts (
    name TEXT NOT NULL PRIMARY KEY,         -- as in keys.account and in the ledger
    note TEXT NOT NULL,                     -- for the operator's eyes: whose it is, how to reach them
    created_at DOUBLE PRECISION NOT NULL,
    enabled BOOLEAN NOT NULL,
    revision BIGINT NOT NULL
);
CREATE INDEX accounts_by_revision ON accounts (revision);

INSERT INTO accounts (name, note, created_at, enabled, revision)
SELECT account, '', MIN(created_at), TRUE, 0 FROM keys GROUP BY account;

-- Unlike a revocation, this can be taken back.
ALTER TABLE keys ADD COLUMN enabled BOOLEAN NOT NULL DEFAULT TRUE;
CREATE INDEX keys_by_account ON keys (account);
