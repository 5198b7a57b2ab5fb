"""Backups: one file with all that a server needs to be the same server again, and the way back.

From the bytes up: ``age`` encrypts, with keys of ``age_keys``; ``archive`` is the sequence of named
parts in it, and notices any damage; ``data_files`` are the files of the data directory;
``postgres_parts`` the tables of PostgreSQL; ``making`` writes a backup and ``restoring`` reads one.
May import ``data_directory`` and what is below it.
"""
