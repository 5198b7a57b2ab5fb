"""Drivers: they move bytes between the pure core and asyncio, and decide nothing."""
