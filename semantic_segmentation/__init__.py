"""Semantic segmentation with PaddleSeg: the backbone and the paper's UPerNet, registered under their names."""
