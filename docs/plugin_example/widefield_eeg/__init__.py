"""Electroencephalograms for Widefield."""
