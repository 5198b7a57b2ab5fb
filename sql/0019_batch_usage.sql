-- The tokens of a batch's answers, as JSON of OpenAI's API, and the seconds that its files are kept; 0: as others.
ALTER TABLE batches ADD COLUMN usage TEXT NOT NULL DEFAULT 'null';
ALTER TABLE batches ADD COLUMN output_seconds BIGINT NOT NULL DEFAULT 0;
