"""What PaddleSeg and PaddleDetection have in common for this project."""
