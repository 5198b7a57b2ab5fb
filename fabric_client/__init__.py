"""The node: dials out to a server and fronts a local engine."""
