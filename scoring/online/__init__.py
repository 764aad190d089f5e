"""Reads current feature vectors from an online store. Imports no code for batch requests or HTTP."""
