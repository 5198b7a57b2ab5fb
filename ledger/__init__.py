"""Ledger entries and heartbeats on their way from a server to the store's tables.

Record types, the batch writer that moves them, the tables that hold them and the reports read from
these, and the Kafka client.  The server and ``fabric-consumer`` both write the store, so what they
share is here and not in either.  Imports ``sql``, ``protocol.messages`` and ``runtime`` alone.
"""
