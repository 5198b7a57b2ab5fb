"""Joins a server, and keeps the node registered with it: links, tunnels, heartbeats.

Imports proxy, engines, hardware and identity; the supervisor makes its ``RegistrationLoop``.
"""
