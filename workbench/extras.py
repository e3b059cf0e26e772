"""Optional dependencies: which `pip install` a feature needs."""

from importlib.util import find_spec

from workbench.errors import UsageError

EXTRAS = {
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "sweep": ("optuna", "hydra_plugins.hydra_joblib_launcher", "hydra_plugins.hydra_submitit_launcher"),
}


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def need(extra: str, feature: str) -> None:
    """Raise a `UsageError` that names the extra if a dependency of `feature` is not installed."""
    missing = [module for module in EXTRAS[extra] if not _installed(module)]
    if missing:
        raise UsageError(f"{feature} needs {', '.join(missing)}: pip install -e '.[{extra}]'")
