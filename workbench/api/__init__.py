"""Widefield from Python, installed as the package `widefield`.

>>> import widefield  # doctest: +SKIP
>>> widefield.load("runs/speech_commands/RUN").predict("clip.wav").shown  # doctest: +SKIP
'yes 98.2%  yet 0.9%  left 0.4%'
"""

from backbone import CheckpointError
from tasks.datasets.errors import DataError
from tasks.task import Prediction
from workbench.errors import UsageError
from workbench.loading import Input, Model, load

__all__ = ["CheckpointError", "DataError", "Input", "Model", "Prediction", "UsageError", "load"]
