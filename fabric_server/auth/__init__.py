"""Authentication and rate limits of API keys.

May import dialects (for errors), storage rows and caches; knows nothing of HTTP or of models.
"""
