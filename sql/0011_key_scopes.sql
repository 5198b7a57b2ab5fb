-- What a management key may do, as a JSON array of names; NULL is everything.  An unknown name
-- allows nothing.
ALTER TABLE keys ADD COLUMN scopes TEXT;
