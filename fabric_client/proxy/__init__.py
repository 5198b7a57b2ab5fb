"""Forwards requests from tunnels to engines, and their answers back.

Slots, bodies, connections to engines and the upload limit are here.  Imports engines, reasoning and
translation, but no registration: a stream is all that it knows of a server.
"""
