"""Extensions of Feast that a feature_store.yaml can name, and code for the layout of Feast's online stores.

This package imports no code for models, requests or settings.
"""
