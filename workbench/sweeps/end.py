"""The final summary of a sweep: number of finished runs, errors of the others, path of the report."""

import logging
from collections import Counter

from workbench.console import quiet_libraries
from workbench.errors import sentence
from workbench.quoting import command
from workbench.sweeps.folder import DONE, MISSING, RUNNING, SweepFolder
from workbench.sweeps.words import KEY

log = logging.getLogger("widefield")


def finish(sweep: SweepFolder, report: bool) -> int:
    """Write the report, log a summary of the sweep and return the exit code: 0 if every run is done."""
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

    quiet_libraries()
    try:
        log.info("report: %s", write_report(sweep.path))
    except Exception as error:  # a failed report must not suppress the summary
        said = sentence(error) or f"{type(error).__name__}: {error}"
        log.error("there is no report: %s", said)
