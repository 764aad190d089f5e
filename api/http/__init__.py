"""Routes, bodies, problems and the server. The only package that knows HTTP."""
