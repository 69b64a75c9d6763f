r"""Train or evaluate a Pale Transformer on labeled images, on one rank or many.

    python image_classification/main_multi_gpu.py
    python image_classification/main_multi_gpu.py -resume auto
    python image_classification/main_multi_gpu.py -eval -pretrained mnist5k
    python image_classification/main_multi_gpu.py \
        -cfg image_classification/configs/finetune_folder.yaml -data_path my_photos
    python -m paddle.distributed.launch --log_dir output/log --nproc_per_node 2 \
        image_classification/main_multi_gpu.py -opts TRAIN.EPOCHS 32

Without flags it trains pale_nano on 4,000 handwritten digits (configs/pale_nano_mnist5k.yaml).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the launcher puts this folder there, not the project's

from common.training.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__doc__, "image_classification")
