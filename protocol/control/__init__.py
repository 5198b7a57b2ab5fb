"""The control link's state machine: registration, reports and heartbeats behind a length.

No input or output, no clock.  May import what ``protocol.tunnel`` may, and its keepalive.
"""
