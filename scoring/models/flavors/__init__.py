"""Model libraries: one module per library, each a `Flavor`. They know a version's files, but not features or requests.

docs/architecture.md lists what a new library needs.
"""
