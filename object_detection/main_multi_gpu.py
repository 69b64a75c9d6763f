r"""Train or evaluate a Pale Transformer that finds objects and their masks, on one rank or many.

    python object_detection/main_multi_gpu.py
    python object_detection/main_multi_gpu.py -resume auto
    python object_detection/main_multi_gpu.py \
        -cfg object_detection/configs/mask_rcnn_own_data.yml -data_path my_data -check_data
    python object_detection/main_multi_gpu.py \
        -eval -pretrained output/mask_rcnn_pale_nano_nuclei/best.pdparams
    python -m paddle.distributed.launch --log_dir output/log --nproc_per_node 2 \
        object_detection/main_multi_gpu.py

Without flags it trains Mask R-CNN on pale_nano to find cell nuclei (configs/mask_rcnn_pale_nano_nuclei.yml).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the launcher puts this folder there, not the project's

from common.training.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__doc__, "object_detection")
