"""Drawing results."""
