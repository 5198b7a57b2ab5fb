"""Known vulnerabilities of the locked dependencies: ``make audit``."""
