"""Pruning: weights set to zero, and channels taken out."""
