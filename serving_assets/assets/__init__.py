"""The asset graph, its checks and its metadata. Knows nothing of sensors."""
