"""Common parts of all programs: settings, flags, logging, command output and the event loop.

May import nothing else of the project.
"""
