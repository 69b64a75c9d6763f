from common.toolkits import ppdet_patches  # noqa: F401 (before a test imports ppdet, which changes Pillow)
