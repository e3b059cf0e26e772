"""What a sweep says at its end: how many runs are done, why the others are not, where the report lies."""

import logging
from collections import Counter

from workbench.errors import sentence
from workbench.quoting import command
from workbench.sweeps.folder import DONE, MISSING, RUNNING, SweepFolder
from workbench.sweeps.words import KEY

log = logging.getLogger("widefield")


def finish(sweep: SweepFolder, report: bool) -> int:
    """Draw the report, sum the sweep up and return the exit code: 0 if every run is done."""
    records = {job.folder: sweep.record(job) for job in sweep.jobs}
    if report and records:
        _report(sweep)
    counts = Counter(record["status"] for record in records.values())
    log.info("sweep: %s", ", ".join(f"{count} {status}" for status, count in counts.items()) or "no runs")
    for folder, record in records.items():
        if record["status"] != DONE:
            unknown = "was not started" if record["status"] == MISSING else "has not ended"
            log.error("  %s: %s: %s", record["status"], folder, record.get("error") or unknown)
    if counts[DONE] == len(records):
        return 0
    if counts[RUNNING]:
        log.info("runs that a cluster still works on go on writing into %s", sweep.path)
    log.info("to make only what is missing or failed: %s", command(**{KEY: sweep.path}))
    return 1


def _report(sweep: SweepFolder) -> None:
    from workbench.report.write import write_report

    try:
        log.info("report: %s", write_report(sweep.path))
    except Exception as error:  # whatever keeps it from being drawn: the summary is still to come
        said = sentence(error) or f"{type(error).__name__}: {error}"
        log.error("there is no report: %s", said)
