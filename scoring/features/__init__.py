"""Links a model to Feast: the feature that fills each input, resolved once when a version is loaded.

The package also opens, applies and materializes the feature store, and runs on-demand views. It does not import MLflow,
and it does not read the features of entity rows.
"""
