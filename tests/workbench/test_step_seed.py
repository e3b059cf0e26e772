"""Seeding of a training step draws what `torch.manual_seed` draws."""

import pytest
import torch

from workbench.callbacks.step_seed import seed_torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_draws_are_those_of_manual_seed(device: str) -> None:
    seed_torch(5)
    ours = torch.rand(8, device=device)
    torch.manual_seed(5)
    assert ours.equal(torch.rand(8, device=device))


def test_nothing_is_noted_for_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[object] = []
    for module in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(module, "_lazy_call", lambda *call, **options: noted.append(call), raising=False)
    torch.manual_seed(5)
    if not torch.accelerator.is_available():
        assert noted, "the reason for not using it"
    noted.clear()
    seed_torch(5)
    assert not noted
