"""Figures of this machine: processor, memory, disk, network, battery and GPUs.

Imports nothing else of the node.
"""
