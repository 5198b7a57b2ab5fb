"""The error of everything that can be wrong with a backup."""

from __future__ import annotations


class BackupProblem(Exception):
    """A backup can't be made, read or restored; ``str()`` says why, and what to do."""
