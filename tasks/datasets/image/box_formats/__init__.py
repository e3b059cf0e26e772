"""Readers of detection label formats, one module per format, with a common result type (`labels`)."""
