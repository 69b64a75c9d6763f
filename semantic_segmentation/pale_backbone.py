"""The plug-in for PaddleSeg: importing it registers ``PaleTransformer`` and ``PaleUPerNet`` and applies patches."""

from __future__ import annotations

from common.paddleseg import PaleTransformer

__all__ = ["PaleTransformer"]
