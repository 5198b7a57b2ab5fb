"""The tunnel's state machine: frames, credit, keepalive, and streams that survive a cut.

No input or output, no clock.  May import ``protocol.messages``, ``protocol.errors`` and
``protocol.token_bucket``.
"""
