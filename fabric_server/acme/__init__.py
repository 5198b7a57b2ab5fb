"""Certificates for users from a certificate authority that speaks ACME, such as Let's Encrypt.

Each server has an account and a certificate of its own, in ``<data>/acme``.  The store has the
challenges under way, so that whichever server the CA asks can answer.  Nodes are not concerned.

May import pki, net and storage; knows nothing of requests.
"""
