"""Takes one request to an engine: attempts, retries, hedges, continuations, the ledger's record.

``RetryLoop`` asks one engine after the other; an ``Attempt`` is one of them.  May import what a
request is (edge), which engine is chosen (routing) and which nodes there are (nodes), but not the
gateway, which hands an ``UpstreamContext`` down.
"""
