"""The local engines: their addresses, how they are found and probed, and the built-in echo.

Imports translation, for the paths that each kind of engine can be asked on.
"""
