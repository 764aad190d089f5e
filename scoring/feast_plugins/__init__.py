"""Extensions of Feast that a feature_store.yaml names, and the layout of Feast's online stores.

Knows nothing of models, requests or settings.
"""
