"""Weights: files, downloads, released ones, and loading them into models."""
