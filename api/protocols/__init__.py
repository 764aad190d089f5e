"""Wire formats: each module decodes requests to entity rows and encodes scores and problems, over the same scoring.

Knows request and response bodies and their headers. Does not know routes, connections or Litestar's handlers.
"""
