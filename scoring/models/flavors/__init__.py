"""Model libraries: one module per library, each a `Flavor`. They know a version's files, but not features or requests.

A new library is a module here, a line in `flavor.LIBRARIES`, and an extra in pyproject.toml.
"""
