"""Image files, class names, and records of data checks."""
