"""How tests of data sets write images, and expect mistakes to be named."""

import pytest
from PIL import Image

from common.errors import UserError
from image_classification.datasets import build_dataset


def save_image(path, size=(8, 6), color=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def fails(parts, *args, **kwargs):
    """Expect a one-line UserError from build_dataset whose message has all the given parts."""
    assert_refused(lambda: build_dataset(*args, **kwargs), *([parts] if isinstance(parts, str) else parts))


def assert_refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
