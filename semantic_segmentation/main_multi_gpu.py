r"""Train or evaluate a Pale Transformer that labels every pixel, on one rank or many.

    python semantic_segmentation/main_multi_gpu.py
    python semantic_segmentation/main_multi_gpu.py -resume auto
    python semantic_segmentation/main_multi_gpu.py \
        -cfg semantic_segmentation/configs/upernet_own_data.yml -data_path my_data -num_classes 3 -check_data
    python semantic_segmentation/main_multi_gpu.py \
        -eval -pretrained output/upernet_pale_nano_nuclei/best.pdparams
    python -m paddle.distributed.launch --log_dir output/log --nproc_per_node 2 \
        semantic_segmentation/main_multi_gpu.py

Without flags it trains UPerNet on pale_nano to find cell nuclei (configs/upernet_pale_nano_nuclei.yml).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the launcher puts this folder there, not the project's

from common.training.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__doc__, "semantic_segmentation")
