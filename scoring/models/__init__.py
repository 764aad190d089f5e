"""From the MLflow Model Registry to a loaded model that has passed admission.

Knows nothing of Feast, requests or files of predictions.
"""
