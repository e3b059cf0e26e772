r"""Any collection of audio files: a folder per class, a table, or labels in the file names.

Examples:
    A folder per class, split by name (or below train/, val/ and test/)::

        python run.py task=audio_folder data_dir=PATH

    A table with the columns path, label and optionally split; several labels are separated by ``;``::

        python run.py task=audio_folder data_dir=PATH task.data.csv=labels.csv task.data.multilabel=true

    Labels in the file names, as in the Free Spoken Digit Dataset (``7_jackson_32.wav``), recordings 0 to 4 for
    testing::

        python run.py task=audio_folder data_dir=PATH 'task.data.label_from="^(?P<label>\d)_"' \
            'task.data.test_from="_[0-4]\.wav$"'
"""

from pathlib import Path

from typing_extensions import Unpack

from tasks.datasets.audio.files import AudioData
from tasks.datasets.labelled_files import FromLabelledFiles, LabelledFiles, LabelSettings, label_settings
from tasks.datasets.shards.data import ShardableSettings


class AudioFolderSettings(LabelSettings, ShardableSettings, total=False):
    """Arguments that `AudioFolder` passes on."""


class AudioFolder(FromLabelledFiles, AudioData):
    """Your own audio files.

    Args:
        multilabel: a file may have several labels (`LabelledFiles`).
        sample_rate, seconds, test_crops: see `AudioData`.
        **settings: see `LabelledFiles`, `ShardableData` and `DataModule`.
    """

    title = "recordings of your own"
    layout = (
        "a folder of audio files per class, or train/, val/ and test/ with such folders, "
        "or task.data.csv=FILE with the columns path,label[,split|fold|group], "
        "or task.data.label_from=REGEX for labels in names"
    )

    def __init__(
        self,
        *,
        multilabel: bool = False,
        sample_rate: int = 16000,
        seconds: float | str = 1.0,
        test_crops: int | str = 1,
        **settings: Unpack[AudioFolderSettings],
    ) -> None:
        labels, common = label_settings(settings)
        super().__init__(sample_rate=sample_rate, seconds=seconds, test_crops=test_crops, **common)
        self.targets.multilabel = multilabel
        self.files = LabelledFiles(self.extensions, multilabel=multilabel, **labels)

    def write_sample(self, root: Path) -> None:
        from tasks.datasets.audio.sample import audio_folder

        audio_folder(root)
