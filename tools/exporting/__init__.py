"""Parts of tools/export.py."""
