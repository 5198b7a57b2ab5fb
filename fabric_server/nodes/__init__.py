"""Connected nodes: their links and tunnels, the registry of their engines, circuit breakers.

May import dialects, storage rows and the protocol; knows nothing of requests or routing.
"""
