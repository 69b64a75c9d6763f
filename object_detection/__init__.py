"""Object detection and instance segmentation with PaddleDetection: the backbone, registered under its name."""
