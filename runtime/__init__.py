"""What every program of the fabric does alike: read its settings, write its log."""
