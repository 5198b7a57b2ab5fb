"""Meters: read tokens and completeness off an answer while it passes, for each API.

Pure: bytes in, bytes out.  Imports nothing of the server.
"""
