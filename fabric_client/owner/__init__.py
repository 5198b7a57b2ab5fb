"""The owner's control of the node: commands, hours and pauses, and the state that is shown.

Imports hardware and identity only, so that commands which need nothing else start fast.
"""
