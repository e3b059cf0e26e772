"""Frozen features: extraction from a network, storage in files, and evaluation."""
