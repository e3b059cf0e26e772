"""Widefield's one command: compose a modality, a task and a backbone, then act.

    python run.py modality=audio task=speech_commands
    python run.py action=predict ckpt=runs/RUN/checkpoints/best.ckpt input=clip.wav
    python run.py -m backbone=unireplknet_a,unireplknet_f seed=0,1
    python run.py sweep=kernel_size hydra/launcher=joblib

Heavy libraries are imported inside `main`, so that `--help` and shell completion stay quick.
"""

import logging
import os
import sys
from pathlib import Path

from tasks.libraries import complaint_of
from workbench.stopping import STOP, Interrupted

if __name__ == "__main__":
    STOP.heed()
try:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from workbench.errors import kept_errors, plain_errors
    from workbench.flags import answer_flags
    from workbench.old_names import take_current_names
    from workbench.resolvers import register_resolvers
    from workbench.resume_words import take_run_words
    from workbench.secret_words import check_secrets, take_secrets, words_of
    from workbench.sweeps.job import follow_parent, run_job
    from workbench.sweeps.words import take_arguments
    from workbench.typed_words import quote_arguments
    from workbench.words import check_words, plain_words
except Interrupted as stop:
    stop.end()
except Exception as error:
    said = complaint_of(error)
    if said is None or os.environ.get("WIDEFIELD_TRACE"):
        raise
    if "action=doctor" in sys.argv[1:]:  # it needs no library at all, so it can still say what is wrong
        from workbench.doctor import examine

        sys.exit(0 if examine() else 1)
    sys.exit(f"error: {said}")

register_resolvers()
# Waiting threads of the CPU kernels give way instead of spinning: on a busy machine a step is ten times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A full disk would answer every line of run.log with a traceback; the terminal has the same lines.
logging.raiseExceptions = False


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run the chosen action; the value returned is the monitored metric, so that a sweeper can optimise it."""
    take_current_names(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(cfg)
    with plain_errors(), kept_errors(Path(HydraConfig.get().runtime.output_dir)):
        check_words(cfg, words_of(HydraConfig.get().overrides.task))
    if cfg.action.name == "doctor":  # before PyTorch is imported: it is asked when that is what fails
        from workbench.doctor import doctor

        doctor(cfg)
        return None
    from workbench.actions import run_action

    return run_action(cfg)


if __name__ == "__main__":
    try:
        follow_parent()
        answer_flags()
        take_secrets()
        take_arguments()
        take_run_words()
        take_secrets()  # of the words that a run's folder has added
        quote_arguments()
        check_secrets()
        with plain_errors(), plain_words():
            main()
    except Interrupted as stop:
        stop.end()
    except SystemExit:
        if STOP.number is not None:  # the signal was taken for an error of what it broke into
            STOP.leave().end()
        raise
