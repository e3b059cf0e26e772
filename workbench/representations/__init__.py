"""Frozen features: taking them from a network, keeping them in files, and measuring what they are worth."""
