"""Files that all predictions of a run share, such as `events.csv` or `detections.json`."""

from pathlib import Path

from tasks.datasets.base import DataModule
from tasks.task import Shared
from workbench.files import write_columns, write_findings, write_list

Entries = list[tuple[str, Shared]]  # (input file, its entry) in order


class SharedFiles:
    """Collects the entries of predictions and writes the files."""

    def __init__(self) -> None:
        self.entries: dict[str, Entries] = {}

    def add(self, file: str, shared: dict[str, Shared]) -> None:
        """Append one prediction's entries (`Prediction.shared`)."""
        for name, entry in shared.items():
            self.entries.setdefault(name, []).append((file, entry))

    def write(self, folder: Path, data: DataModule, suffix: str = "") -> list[Path]:
        """Write the files; returns their paths.

        Args:
            folder: where.
            data: what has read the input files.
            suffix: appended to the stem of each file.
        """
        files = []
        for name, entries in self.entries.items():
            path = folder / f"{Path(name).stem}{suffix}{Path(name).suffix}"
            content = entries[0][1].join([(file, entry.content) for file, entry in entries], data)
            if content is None:
                continue
            if isinstance(content, list):
                write_list(path, content)
            elif path.suffix == ".csv":
                write_columns(path, content)
            else:
                write_findings(path, content)
            files.append(path)
        return files
