"""Sweepers of this workbench; Hydra discovers them by the package name."""
