"""The choice of the models that are offered to others, and their public names.

The owner's patterns decide what is offered (``patterns``); a model that is known by a place on the
owner's disk gets a name of its own (``names``).  ``offered`` applies both to one engine's models;
``admission`` and ``forms`` admit no request for any other model, and ``name_filter`` lets nothing
of the others into an answer.  Pure: imports only ``protocol``, ``fabric_client.sse`` and
``fabric_client.translation``.
"""
