"""Layers of the model and what their variants need."""
