"""Benchmarks of the running services. Nothing imports this package; it reuses the worlds and servers of the tests."""
