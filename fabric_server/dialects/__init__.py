"""The APIs of the public port: endpoints, what a body says, and errors in each dialect's words.

Pure: bytes in, values out.  May import metering, and nothing above.
"""
