"""SQL databases: one interface, its adapters for SQLite and PostgreSQL, and the migrations.

The numbered ``.sql`` files beside the modules are the schema; README.md has its rules and reasons.
Imports ``runtime`` alone; queries are in the packages that own the tables.
"""
