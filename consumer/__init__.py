"""The program ``fabric-consumer``: moves records from Kafka into PostgreSQL.

Needed only where the bus is Kafka.  Imports ``ledger``, ``sql`` and ``runtime``; nothing imports
this package.
"""
