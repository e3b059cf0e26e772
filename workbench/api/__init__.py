"""Widefield from Python; installed as the package `widefield`."""
