"""A model's link to Feast: which feature fills each input, resolved once when a version is loaded.

The only package that walks Feast's feature services. Knows nothing of MLflow or of how features are read.
"""
