"""Attacks that one key, one address or one node can make, and what a user beside them notices.

    python -m tests.attack [NAME …] [--seconds 8] [--json]      (make attack)

All of it is in a network namespace of its own, where no process of this machine can be reached:
``stage`` has the fabric under attack, ``attacks`` what is done to it, ``victim`` the user beside.
"""
