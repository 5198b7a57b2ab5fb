"""The public API's handlers: requests for engines, and the list of models.

``Gateway.complete`` tells a request's story: authentication, body, options, requirements, answer,
ledger.  May import all that it hands the request on to: proxy, routing, edge, auth, dialects.
"""
