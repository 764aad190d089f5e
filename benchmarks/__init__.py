"""Measurements of the running services. Nothing imports this; its worlds and servers are those of the tests."""
