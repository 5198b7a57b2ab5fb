"""Asynchronous work on the public port: jobs (``/inference``), files, batches and webhooks.

``service`` builds all of it from a ``JobsContext``.  Jobs wait in the store; each server claims
some and sends their requests through its own gateway.  May import everything below ``app`` and
``admin`` in the server's layers.
"""
