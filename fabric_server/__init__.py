"""The public side: users come in here, and leave through a tunnel to a node."""
