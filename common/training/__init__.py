"""Training and evaluation, the same for all tasks."""
