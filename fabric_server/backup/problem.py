"""The error of everything that can be wrong with a backup."""

from __future__ import annotations

from runtime.errors import Problem


class BackupProblem(Problem):
    """A backup can't be made, read or restored; ``str()`` says why, and what to do."""
