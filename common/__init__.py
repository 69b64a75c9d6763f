"""The Pale Transformer and everything that more than one task uses."""

import numpy  # noqa: F401  (before paddle: the zlib that paddle 2.6 loads breaks Pillow's PNG reader otherwise)

__version__ = "0.2.0"
