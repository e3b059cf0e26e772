"""Widefield's command: composes a modality, a task and a backbone, then runs an action.

    python run.py modality=audio task=speech_commands
    python run.py action=predict ckpt=runs/RUN/checkpoints/best.ckpt input=clip.wav
    python run.py -m backbone=unireplknet_a,unireplknet_f seed=0,1
    python run.py sweep=kernel_size hydra/launcher=joblib

An installed package provides the same program as `widefield`. The implementation is in `workbench/command_line.py`.
"""

from workbench.main import main

if __name__ == "__main__":
    main()
