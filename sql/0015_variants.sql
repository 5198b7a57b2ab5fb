-- The weights that a job, a line or a batch asks for, as in the request's headers; '': any.
ALTER TABLE jobs ADD COLUMN variant_quantization TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN variant_digest TEXT NOT NULL DEFAULT '';
ALTER TABLE batches ADD COLUMN variant_quantization TEXT NOT NULL DEFAULT '';
ALTER TABLE batches ADD COLUMN variant_digest TEXT NOT NULL DEFAULT '';
