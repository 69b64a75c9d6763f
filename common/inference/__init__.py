"""Prediction with trained and with exported models."""
