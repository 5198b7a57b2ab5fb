"""Store, cache and bus of the server: interfaces, one adapter for each kind, opened by URL.

The store keeps rows (``store``, ``jobs``, ``batches``, ``files``, ``webhooks``), the cache values
for a while and notices of changes, the bus records until they are stored.  Imports ``ledger``,
``sql`` and ``runtime``, nothing else of the server.
"""
