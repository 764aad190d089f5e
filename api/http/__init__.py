"""Connections, routes, access and the server. Knows no wire format's bodies except those of its own routes."""
