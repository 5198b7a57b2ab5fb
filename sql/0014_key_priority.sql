-- The highest priority that a key's requests may have: high, medium or low.  And how many of them
-- may be under way at once; NULL is as many as it likes.
ALTER TABLE keys ADD COLUMN priority TEXT NOT NULL DEFAULT 'medium';
ALTER TABLE keys ADD COLUMN requests_at_once BIGINT;
