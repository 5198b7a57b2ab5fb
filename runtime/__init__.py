"""Common parts of all programs: settings, flags, logging, output, event loop, engines' errors.

May import nothing else of the project.
"""
