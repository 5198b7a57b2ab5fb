"""Takes heartbeats and ledger rows from the bus to the store, in batches."""
