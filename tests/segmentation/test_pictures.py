"""Pictures for VisualDL."""

from __future__ import annotations

import numpy as np
import paddle
from paddleseg.transforms import Compose, Normalize, Padding, Resize

from common.pictures.drawing import palette
from semantic_segmentation.pictures import labeled_images, original_image, prediction_beside_truth


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 250, (height, width, 3)).astype(np.uint8)


def colors_of(picture):
    return {tuple(color) for color in picture.reshape(-1, 3).tolist()}


def test_paddlesegs_transforms_are_undone():
    image = random_image(2, 3).repeat(10, axis=0).repeat(10, axis=1)
    transforms = [Resize((60, 40)), Padding((61, 70)), Normalize()]
    data = Compose(transforms, to_rgb=False)({"img": image.astype(np.float32)})
    pixels = paddle.to_tensor(data["img"][np.newaxis])
    result = original_image(pixels, data["trans_info"], Normalize().mean, Normalize().std)
    assert (result.dtype, result.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(result[5::10, 5::10], image[5::10, 5::10])


def test_legends_have_the_classes_that_occur():
    label, prediction = np.zeros((2, 40, 60), np.uint8)
    label[:10], label[-5:], prediction[:, :30] = 1, 255, 2
    image, names = random_image(40, 60), ["background", "nucleus", "other"]
    first, second, third = (tuple(color) for color in palette(3).tolist())
    picture = prediction_beside_truth(image, label, prediction, names)
    assert {first, second, third} <= colors_of(picture)
    assert picture.shape[1] > 3 * 320  # small images are enlarged
    found = colors_of(labeled_images([image, image], [label, label], names))
    assert {first, second} <= found
    assert third not in found
