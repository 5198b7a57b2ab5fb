"""Installs a program as a service of this machine: systemd, launchd, or Windows' task scheduler.

Each manager turns a ``Service`` into a ``Plan`` of files and commands, without doing anything;
``install`` shows or carries out plans.  Imports the rest of ``runtime``.
"""
