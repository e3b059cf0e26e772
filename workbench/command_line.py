"""Command line: composes a modality, a task and a backbone, then runs the action.

Heavy libraries are imported inside `compose_and_act`, so that `--help` and shell completion stay quick.
"""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from tasks.program import ROOT
from workbench.checkpoint_words import take_checkpoint_words
from workbench.conf_folders import CONF, check_plugins
from workbench.errors import kept_errors, plain_errors
from workbench.flags import answer_flags
from workbench.old_names import take_current_names
from workbench.overrides import recorded
from workbench.registered import register_plugins
from workbench.resolvers import register_resolvers
from workbench.resume_words import take_run_words
from workbench.secret_words import check_secrets, take_secrets, words_of
from workbench.stopping import STOP, Interrupted
from workbench.sweeps.job import follow_parent, run_job
from workbench.sweeps.words import take_arguments
from workbench.threads import wait_briefly
from workbench.typed_words import quote_arguments
from workbench.words import check_words, plain_words

register_resolvers()
register_plugins()
wait_briefly()
# On a full disk logging would print a traceback for every line of run.log; the terminal shows the same lines.
logging.raiseExceptions = False


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def compose_and_act(cfg: DictConfig) -> float | None:
    """Run the chosen action; the value returned is the monitored metric, so that a sweeper can optimise it."""
    take_current_names(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(cfg)
    words = words_of(HydraConfig.get().overrides.task)
    with plain_errors(), kept_errors(Path(HydraConfig.get().runtime.output_dir)):
        check_words(cfg, words)
    if cfg.action.name == "doctor":  # before PyTorch is imported: it also diagnoses failing imports
        from workbench.doctor import doctor

        doctor(cfg)
        return None
    from workbench.actions import run_action

    return run_action(recorded(cfg, words))


def obey() -> None:
    """Run the command in `sys.argv`."""
    try:
        follow_parent()
        check_plugins()
        answer_flags()
        take_secrets()
        take_arguments()
        take_run_words()
        take_checkpoint_words()
        take_secrets()  # in overrides added from a run folder
        quote_arguments()
        check_secrets()
        _place_config_path()
        with plain_errors(), plain_words():
            compose_and_act()
    except Interrupted as stop:
        stop.end()
    except SystemExit:
        if STOP.number is not None:  # the interrupted library turned the signal into an error
            STOP.leave().end()
        raise


def _place_config_path() -> None:
    """Make a relative `--config-path` relative to the folder of `run.py`; Hydra would use this module's folder."""
    flags = ("--config-path", "-cp")
    for place, word in enumerate(sys.argv):
        flag, equals, value = word.partition("=")
        if sys.argv[place - 1] in flags and place > 1 and "://" not in word:
            sys.argv[place] = os.path.join(ROOT, word)
        elif flag in flags and equals and "://" not in value:
            sys.argv[place] = f"{flag}={os.path.join(ROOT, value)}"
