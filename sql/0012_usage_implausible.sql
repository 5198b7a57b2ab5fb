-- The node reported more tokens than there can have been; the row has the most that is plausible.
ALTER TABLE ledger ADD COLUMN usage_implausible BOOLEAN NOT NULL DEFAULT FALSE;
