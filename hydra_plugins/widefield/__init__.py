"""Sweepers of this workbench; Hydra finds them by the package's name."""
