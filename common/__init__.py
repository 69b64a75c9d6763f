"""The Pale Transformer and everything that more than one task uses."""
