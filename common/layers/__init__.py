"""Layers that the model is built of, and what makes them fast. They import nothing else of this package."""
