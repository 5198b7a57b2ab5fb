-- The engine did not tell all the tokens of the request: the others are estimates.
ALTER TABLE ledger ADD COLUMN estimated BOOLEAN NOT NULL DEFAULT FALSE;
-- How many of the hour's requests are so.
ALTER TABLE usage_by_hour ADD COLUMN estimated BIGINT NOT NULL DEFAULT 0;
