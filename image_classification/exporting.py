"""Description of a classifier for ``tools/export.py``."""

from __future__ import annotations

from common.inference.exportable import Exportable, Output
from image_classification.prediction import Classifier

__all__ = ["exportable"]


def exportable(classifier: Classifier) -> Exportable:
    """Images to logits, without the softmax."""
    data, model = classifier.config.DATA, classifier.model
    side = round(data.IMAGE_SIZE / data.CROP_PCT)
    learned_positions = classifier.config.MODEL.POSITION_ENCODING in ("absolute", "relative")
    size = (data.IMAGE_SIZE, data.IMAGE_SIZE)
    return Exportable(
        name=classifier.config.MODEL.NAME,
        labels=classifier.class_names or [str(label) for label in range(model.num_classes)],
        layer=model,
        inputs={"images": [None, 3, None, None]},
        outputs=[Output("logits", ["batch", model.num_classes], "of each class; their softmax gives probabilities")],
        inputs_of=lambda file: {"images": classifier.preprocess(file)[0]},
        preprocessing={
            "color_order": "RGB",
            "resize_shorter_side_to": side,
            "resize_with": "Pillow",
            "interpolation": data.INTERPOLATION,
            "crop_center_to": list(size),
            "divide_by": 255,
            "mean": list(data.MEAN),
            "std": list(data.STD),
            "layout": "NCHW",
            "dtype": "float32",
        },
        postprocessing="softmax over the classes",
        usual_size=size,
        size_key="DATA.IMAGE_SIZE",
        takes_usual_size_only=learned_positions,
        agreement=lambda expected, found: float((expected[0].argmax(axis=1) == found[0].argmax(axis=1)).mean()),
        agreement_name="share of images of the same class",
    )
