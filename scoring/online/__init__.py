"""Feature vectors as of now, read from an online store. Knows nothing of batch requests, HTTP or model files."""
