"""Smaller bundles from trained ones: what is taken out or rounded, how far scores may move, what is measured.

Knows bundles and models; knows nothing about Ray, MLflow or jobs.
"""
