from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from backbone import UniRepLKNet


@pytest.fixture
def tiny() -> Callable[..., UniRepLKNet]:
    """A network of one block a stage and a few channels; keyword arguments override."""

    def build(**overrides: Any) -> UniRepLKNet:
        settings: dict[str, Any] = {
            "in_chans": 2,
            "num_classes": 5,
            "depths": (1, 1, 1, 1),
            "dims": (8, 8, 12, 16),
            "kernel_sizes": (3, 7, 7, 7),
            "layer_scale_init_value": 0.5,
        }
        torch.manual_seed(0)
        return UniRepLKNet(**(settings | overrides))

    return build


@pytest.fixture
def shake() -> Callable[[nn.Module], None]:
    """Move every parameter and every statistic away from its initial value."""

    def move(model: nn.Module) -> None:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, value in (*model.named_parameters(), *model.named_buffers()):
                if name.endswith("running_var"):
                    value.uniform_(0.5, 2.0)
                elif value.is_floating_point():
                    value.add_(0.2 * torch.randn_like(value))

    return move


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A device on which the kernels run."""
    pytest.importorskip("triton")
    if request.param == "cpu":
        if torch.cuda.is_available():
            pytest.skip("where there is a GPU, kernels are compiled and not interpreted")
        monkeypatch.setenv("WIDEFIELD_KERNELS", "interpret")
    else:
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        monkeypatch.setenv("WIDEFIELD_KERNELS", "always")
    return request.param  # type: ignore[no-any-return]
