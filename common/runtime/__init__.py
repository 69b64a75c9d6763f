"""The process: command line, device, ranks, signals, and files that are written whole."""
