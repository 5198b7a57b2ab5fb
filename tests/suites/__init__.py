"""Public test suites, run over a real server, node and engine: ``make suites``."""
