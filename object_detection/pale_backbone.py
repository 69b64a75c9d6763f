"""The plug-in for PaddleDetection: importing it registers ``PaleTransformer`` and applies patches."""

from __future__ import annotations

from common.paddledet import PaleTransformer

__all__ = ["PaleTransformer"]
