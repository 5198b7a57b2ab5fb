"""The API port (18081): health, metrics, operators' REST API and the enrolment of nodes.

A module for each subject has its handlers and the Structs that they take and return; ``server``
has the table of routes.  May import everything below ``app`` in the server's layers; ``app`` hands
the parts of the running server over in an ``AdminContext``.
"""
