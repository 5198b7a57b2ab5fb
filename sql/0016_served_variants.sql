-- The weights of the model, as far as the node's engines tell them; '': not known.
ALTER TABLE served_models ADD COLUMN quantization TEXT NOT NULL DEFAULT '';
ALTER TABLE served_models ADD COLUMN digest TEXT NOT NULL DEFAULT '';
