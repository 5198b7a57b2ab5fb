"""Certificates: the fabric's CA, the files it is kept in, TLS contexts, and enrolment of nodes.

May import net, dialects (for errors) and storage rows; knows nothing of requests.
"""
