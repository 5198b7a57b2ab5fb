"""Listening sockets, TLS handshakes, deadlines, and the takeover of a running server's sockets.

May import dialects (for error bodies), and nothing else of the server.
"""
