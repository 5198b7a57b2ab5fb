"""Fixtures for all tests: the servers of tests/lab/backends.py, each started by its first use."""

pytest_plugins = ("tests.lab.backends",)
