"""The version of this release, written here and nowhere else.

The build reads this file (``[tool.hatch.version]`` in pyproject.toml). The programs use the
constant instead of ``importlib.metadata``: it is also right in a checkout that is not installed,
and does not depend on the name of the distribution.
"""

from __future__ import annotations

VERSION = "0.2.0.dev0"
COMPILED = not __file__.endswith(".py")
"""This module is compiled, and so are the others that release/compiled.py lists."""
