"""Routing: which engine serves a request, when it is its turn, and under which name of the model.

Decisions are pure; ``admission`` applies them to the registry.  May import nodes, dialects and
below, and knows nothing of HTTP requests or tunnels.
"""
