"""What others do in the fabric's place, set up as their users would."""
