-- The ledger summed by hour: written in the transaction that writes the ledger, so that it always
-- equals the ledger's own sum.  Reports over whole hours read this, and the ledger at their edges.
-- What may be NULL in the ledger is '' here: a primary key has no NULL.

CREATE TABLE usage_by_hour (
    hour BIGINT NOT NULL,                   -- its first second, Unix
    account TEXT NOT NULL,
    key_id TEXT NOT NULL,
    node_id TEXT NOT NULL,
    engine TEXT NOT NULL,
    model TEXT NOT NULL,
    path TEXT NOT NULL,
    outcome TEXT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    PRIMARY KEY (hour, account, key_id, node_id, engine, model, path, outcome)
);

INSERT INTO usage_by_hour (
    hour, account, key_id, node_id, engine, model, path, outcome,
    requests, prompt_tokens, completion_tokens, bytes_in, bytes_out
)
SELECT
    CAST(FLOOR(at) AS BIGINT) / 3600 * 3600, account, key_id, COALESCE(node_id, ''),
    COALESCE(engine, ''), model, path, outcome, COUNT(*),
    CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT),
    CAST(SUM(bytes_in) AS BIGINT), CAST(SUM(bytes_out) AS BIGINT)
FROM ledger
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;
