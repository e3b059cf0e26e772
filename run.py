"""Widefield's one command: compose a modality, a task and a backbone, then act.

    python run.py modality=audio task=speech_commands
    python run.py action=predict ckpt=runs/RUN/checkpoints/best.ckpt input=clip.wav
    python run.py -m backbone=unireplknet_a,unireplknet_f seed=0,1

Heavy libraries are imported inside `main`, so that `--help` and shell completion stay quick.
"""

import os

import hydra
from omegaconf import DictConfig

from workbench.resolvers import register_resolvers

register_resolvers()
# Waiting threads of the CPU kernels give way instead of spinning: on a busy machine a step is ten times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run the chosen action; the value returned is the monitored metric, so that a sweeper can optimise it."""
    from workbench.actions import run_action

    return run_action(cfg)


if __name__ == "__main__":
    main()
