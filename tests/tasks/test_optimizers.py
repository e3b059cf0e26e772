"""The optimiser: which parameters decay and how fast each layer learns, seen in the steps it makes."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from backbone import UniRepLKNet
from modalities.audio import LogMel
from modalities.image import Pixels
from tasks.heads import ClassificationHead
from tasks.network import Network
from tasks.optimizers import create_optimizer, learning_rates
from tasks.schedules import constant, cosine, exponential, milestones, poly

STEM, HEAD = "backbone.downsample_layers.0.0.weight", "head.linear.weight"

# The layers of the official release at sizes S to XL (optim_factory.py: twelve groups of three blocks, and two others),
# written down from its table: the first pattern that begins a name gives the layer.
OFFICIAL = (
    (r"backbone\.downsample_layers\.0\.", 0),
    (r"backbone\.stages\.0\.", 1),
    (r"backbone\.downsample_layers\.1\.", 2),
    (r"backbone\.stages\.1\.", 2),
    (r"backbone\.downsample_layers\.2\.", 3),
    (r"backbone\.stages\.2\.[012]\.", 3),
    (r"backbone\.stages\.2\.[345]\.", 4),
    (r"backbone\.stages\.2\.[678]\.", 5),
    (r"backbone\.stages\.2\.(9|10|11)\.", 6),
    (r"backbone\.stages\.2\.1[234]\.", 7),
    (r"backbone\.stages\.2\.1[567]\.", 8),
    (r"backbone\.stages\.2\.(18|19|20)\.", 9),
    (r"backbone\.stages\.2\.2[123]\.", 10),
    (r"backbone\.stages\.2\.2[456]\.", 11),
    (r"backbone\.downsample_layers\.3\.", 12),
    (r"backbone\.stages\.3\.", 12),
    (r"head\.(norm|linear)\.", 13),
)


def network(depths: tuple[int, int, int, int] = (1, 1, 2, 1), seed: int = 0) -> Network:
    torch.manual_seed(seed)
    backbone = UniRepLKNet(in_chans=1, num_classes=0, depths=depths, dims=(8, 8, 16, 16))
    return Network(LogMel(num_mel_bins=32, num_frames=32), backbone, ClassificationHead(16, 3))


def rates(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, float]:
    """Learning rate of every parameter, by name."""
    of = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in module.named_parameters() if id(p) in of}


def trained(
    steps: int = 2, schedule: bool = True, gradient: float = 1.0, **options: Any
) -> dict[str, Tensor]:
    """How far each parameter moves in some steps with the same gradient everywhere."""
    module = network()
    optimizer = create_optimizer(module, **options)
    plan = cosine(optimizer, total_steps=10, steps_per_epoch=10) if schedule else None
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    for _ in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        if plan is not None:
            plan.step()
    return {name: value.detach() - before[name] for name, value in module.named_parameters()}


# -- layer-wise learning rates -------------------------------------------------------------------------------


def test_layers_of_size_s_are_the_official_table() -> None:
    with torch.device("meta"):
        backbone = UniRepLKNet(
            in_chans=3, num_classes=0, depths=(3, 3, 27, 3), dims=(96, 192, 384, 768), drop_path_rate=0.2
        )
        module = Network(Pixels(384), backbone, ClassificationHead(768, 1000))
        optimizer = create_optimizer(module, lr=5e-5, weight_decay=1e-8, layer_decay=0.8)
    found = rates(optimizer, module)
    assert len(found) == len(list(module.parameters()))
    for name, rate in found.items():
        layers = [layer for pattern, layer in OFFICIAL if re.match(pattern, name)]
        assert len(layers) == 1, name
        assert rate == pytest.approx(5e-5 * 0.8 ** (13 - layers[0]), rel=1e-12), name
    shown = learning_rates(optimizer)
    assert len(shown) == 1 + 14
    assert shown["lr"] == shown["lr/layer_13"] == 5e-5
    assert shown["lr/layer_00"] == pytest.approx(5e-5 * 0.8**13)
    for name, parameter in module.named_parameters():
        decays = not (len(parameter.shape) == 1 or name.endswith(".bias"))  # the official rule
        (group,) = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
        assert group["weight_decay"] == (1e-8 if decays else 0.0), name


@pytest.mark.parametrize(("depth", "layers"), [(6, 7), (8, 8), (18, 11), (27, 14)])
def test_smaller_sizes_have_fewer_layers(depth: int, layers: int) -> None:
    module = network((2, 2, depth, 2))
    found = set(rates(create_optimizer(module, lr=1.0, layer_decay=0.5), module).values())
    assert sorted(found) == [0.5**power for power in reversed(range(layers))]


def test_layers_learn_at_their_own_rates_under_a_schedule() -> None:
    """Two steps of SGD under the cosine: what a layer moves is its rate, exactly."""
    options = {"opt": "momentum", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.0}
    plain, slow = trained(**options), trained(**options, layer_decay=0.1)
    module = network()
    for name, layer in module.parameter_layers().items():
        power = max(module.parameter_layers().values()) - layer
        torch.testing.assert_close(slow[name], plain[name] * 0.1**power, rtol=1e-3, atol=1e-7)
    assert plain[STEM].abs().mean() > 1e4 * slow[STEM].abs().mean() * 0.99
    torch.testing.assert_close(slow[HEAD], plain[HEAD])


def test_adamw_moves_the_stem_less_with_layer_decay() -> None:
    plain, slow = trained(lr=0.01), trained(lr=0.01, layer_decay=0.1)
    assert slow[STEM].abs().mean() < 1e-3 * plain[STEM].abs().mean()
    torch.testing.assert_close(slow[HEAD], plain[HEAD])


def test_a_layer_a_block() -> None:
    module = network((2, 1, 3, 1))
    found = rates(create_optimizer(module, lr=1.0, layer_decay=0.5, layer_groups="blocks"), module)
    order = [f"backbone.stages.{s}.{b}" for s, depth in enumerate((2, 1, 3, 1)) for b in range(depth)]
    blocks = [{rate for name, rate in found.items() if name.startswith(f"{block}.")} for block in order]
    assert all(len(block) == 1 for block in blocks), "all of a block learns at one rate"
    values = [found[STEM], *(block.pop() for block in blocks), found[HEAD]]
    assert values == sorted(values), "from stem to head"
    assert len(set(values)) == 2 + len(order), "no two blocks are one layer"
    assert found[HEAD] == 1.0
    for stage in (1, 2, 3):
        downsampling = found[f"backbone.downsample_layers.{stage}.0.weight"]
        first = found[f"backbone.stages.{stage}.0.pwconv1.1.weight"]
        before = found[f"backbone.stages.{stage - 1}.{(2, 1, 3, 1)[stage - 1] - 1}.pwconv1.1.weight"]
        assert before < first
        assert before <= downsampling <= first


def test_blocks_move_apart_where_official_groups_do_not() -> None:
    options = {"opt": "momentum", "lr": 0.1, "momentum": 0.0, "layer_decay": 0.5}
    names = [f"backbone.stages.2.{block}.pwconv1.1.weight" for block in (0, 1)]
    first, second = (trained(**options, layer_groups="official")[name].mean() for name in names)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)
    first, second = (trained(**options, layer_groups="blocks")[name].mean() for name in names)
    torch.testing.assert_close(2 * first, second, rtol=1e-3, atol=1e-6)


def test_rates_survive_saving_and_loading() -> None:
    """A run that goes on has the very rates it would have had, also with the groups' own ones."""

    def at(steps: int) -> tuple[Network, torch.optim.Optimizer, Any]:
        module = network()
        optimizer = create_optimizer(module, lr=0.1, layer_decay=0.5)
        plan = cosine(optimizer, total_steps=10, steps_per_epoch=5)
        for _ in range(steps):
            step(module, optimizer, plan)
        return module, optimizer, plan

    def step(module: Network, optimizer: torch.optim.Optimizer, plan: Any) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        plan.step()

    module, optimizer, plan = at(4)
    saved = [part.state_dict() for part in (module, optimizer, plan)]
    for options in ({"layer_decay": 0.5}, {"layer_decay": 0.9}):  # what is saved counts, not what is built
        again = network(seed=1)
        new = create_optimizer(again, lr=0.1, **options)  # type: ignore[arg-type]
        new_plan = cosine(new, total_steps=10, steps_per_epoch=5)
        for part, state in zip((again, new, new_plan), saved, strict=True):
            part.load_state_dict(state)
        assert rates(new, again) == rates(optimizer, module)
        assert [group["layer"] for group in new.param_groups] == [g["layer"] for g in optimizer.param_groups]
        if options["layer_decay"] == 0.5:
            step(again, new, new_plan)
            whole, reference, _ = at(5)
            assert rates(new, again) == pytest.approx(rates(reference, whole), rel=1e-6)
            for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs)


# -- weight decay and the optimiser's own options ------------------------------------------------------------


def test_only_matrices_decay_unless_all_do() -> None:
    """With no gradient nothing but the decay moves a weight."""
    options = {"lr": 0.1, "weight_decay": 0.5, "gradient": 0.0, "schedule": False, "steps": 1}
    some, everything = trained(**options), trained(**options, decay_all=True)
    start = dict(network().named_parameters())
    for name, value in start.items():
        matrix = value.ndim > 1 and not name.endswith(".bias")
        shrunk = -0.1 * 0.5 * value.detach()
        torch.testing.assert_close(
            some[name], shrunk if matrix else torch.zeros_like(value), atol=1e-7, rtol=1e-4
        )
        torch.testing.assert_close(everything[name], shrunk, atol=1e-7, rtol=1e-4)
    norm = "backbone.stages.0.0.norm.weight"
    assert not torch.equal(some[norm], everything[norm])


def changing(gradients: tuple[float, ...] = (1.0, -3.0), **options: Any) -> Tensor:
    """What the head's weights move in steps of other gradients each."""
    module = network()
    optimizer = create_optimizer(module, **options)
    before = module.head.linear.weight.detach().clone()  # type: ignore[union-attr]
    for gradient in gradients:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return module.head.linear.weight.detach() - before  # type: ignore[union-attr]


def adam_steps(gradients: tuple[float, ...], lr: float, betas: tuple[float, float]) -> float:
    """What Adam moves a weight, from its definition (arXiv 1412.6980)."""
    m = v = moved = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        moved -= lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)) ** 0.5 + 1e-8)
    return moved


@pytest.mark.parametrize("betas", [[0.9, 0.999], [0.95, 0.999], [0.5, 0.9]])
def test_betas_act(betas: list[float]) -> None:
    moved = changing(opt="adam", lr=0.1, betas=betas)
    wanted = adam_steps((1.0, -3.0), 0.1, (betas[0], betas[1]))
    torch.testing.assert_close(moved, torch.full_like(moved, wanted), rtol=1e-4, atol=1e-6)


def test_decay_is_decoupled_in_adamw_and_a_penalty_in_adam() -> None:
    decoupled, penalty = (changing(opt=opt, lr=0.1, weight_decay=0.5) for opt in ("adamw", "adam"))
    assert not torch.allclose(decoupled, penalty, rtol=1e-2)


def as_configured(composed: Callable[..., DictConfig], *words: str) -> tuple[torch.optim.Optimizer, Tensor]:
    """The optimiser that a command line makes, and what two steps of it move the head's bias and weight."""
    module = network()
    optimizer = instantiate(composed(*words).optimizer)(module)
    head: Any = module.head
    before = torch.cat([head.linear.weight.detach().flatten(), head.linear.bias.detach()])
    for gradient in (1.0, -3.0):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return optimizer, torch.cat([head.linear.weight.detach().flatten(), head.linear.bias.detach()]) - before


def test_each_file_makes_its_own_optimizer(composed: Callable[..., DictConfig]) -> None:
    adamw, by_adamw = as_configured(composed, "optimizer=adamw")
    adam, by_adam = as_configured(composed, "optimizer=adam")
    sgd, by_sgd = as_configured(composed, "optimizer=sgd")
    assert [type(made).__name__ for made in (adamw, adam, sgd)] == ["AdamW", "Adam", "SGD"]
    assert not torch.allclose(by_adamw, by_adam)
    assert not torch.allclose(by_adam, by_sgd)
    # Nesterov: the first step (1 + 0.9) g, then g' + 0.9 (0.9 g + g'), times the rate.
    bias = by_sgd[-1].item()
    assert bias == pytest.approx(-0.1 * ((1 + 0.9) * 1 + (-3 + 0.9 * (0.9 * 1 - 3))), rel=1e-4)
    assert by_adam[-1].item() == pytest.approx(adam_steps((1.0, -3.0), 2e-3, (0.9, 0.999)), rel=1e-4)


@pytest.mark.parametrize(
    "option",
    [
        "optimizer.lr=0.3",
        "optimizer.weight_decay=0.7",
        "optimizer.betas=[0.5,0.6]",
        "optimizer.decay_all=true",
        "optimizer.opt=lamb",
    ],
)
def test_every_option_of_the_file_has_an_effect(composed: Callable[..., DictConfig], option: str) -> None:
    module = network()

    def moved(*words: str) -> Tensor:
        torch.manual_seed(0)
        again = network()
        optimizer = instantiate(composed(*words).optimizer)(again)
        for gradient in (1.0, -3.0):
            for parameter in again.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
        old = torch.cat([p.detach().flatten() for p in module.parameters()])
        return torch.cat([p.detach().flatten() for p in again.parameters()]) - old

    base = ("optimizer=adamw", "optimizer.weight_decay=0.5", "optimizer.lr=0.1")
    assert not torch.allclose(moved(*base), moved(*base, option), rtol=1e-3)


def test_sgd_without_momentum_is_a_plain_step() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    module = nn.ParameterList([weight])
    optimizer = create_optimizer(module, opt="sgd", lr=0.5, momentum=0)
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert weight.tolist() == [[0.0, 0.0], [0.0, 0.0]]


# -- what is refused -----------------------------------------------------------------------------------------


def test_frozen_parameters_are_left_out() -> None:
    module = network()
    module.backbone.requires_grad_(False)
    optimizer = create_optimizer(module, lr=1.0, layer_decay=0.5)
    assert rates(optimizer, module) == {name: 1.0 for name, _ in module.named_parameters() if "head." in name}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"layer_groups": "stages"},
            r"layer_groups must be one of official, official_14, blocks, not 'stages'",
        ),
        ({"layer_decay": 0.0}, r"layer_decay must lie in \(0, 1\], or be null, not 0\.0"),
        ({"layer_decay": 1.5}, r"layer_decay must lie in \(0, 1\]"),
        ({"opt": "adamm"}, "adamm"),
        ({"betas": [0.9]}, r"optimizer\.betas takes two numbers, such as \[0\.9, 0\.999\], not \(0\.9,\)"),
        ({"betas": 0.9}, r"optimizer\.betas takes two numbers"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        create_optimizer(network(), lr=0.1, **options)


@pytest.mark.parametrize(
    ("schedule", "options", "said"),
    [
        (cosine, {"min_ratio": -0.5}, r"scheduler\.min_ratio must lie in \[0, 1\], not -0\.5"),
        (cosine, {"min_ratio": math.nan}, r"scheduler\.min_ratio must lie in \[0, 1\]"),
        (cosine, {"warmup_epochs": -1}, r"scheduler\.warmup_epochs must be at least 0, not -1"),
        (exponential, {"every": 0}, r"scheduler\.every must be at least 1"),
        (exponential, {"gamma": -0.5}, r"scheduler\.gamma must be above 0"),
        (exponential, {"start_epoch": -1}, r"scheduler\.start_epoch must be at least 0"),
        (poly, {"power": -1}, r"scheduler\.power must be above 0"),
        (poly, {"min_ratio": 1.5}, r"scheduler\.min_ratio must lie in"),
        (milestones, {"warmup_ratio": -1}, r"scheduler\.warmup_ratio must lie in"),
        (milestones, {"gamma": 0}, r"scheduler\.gamma must be above 0"),
    ],
)
def test_schedules_out_of_range_are_refused(
    schedule: Callable[..., Any], options: dict[str, Any], said: str
) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=said):
        schedule(optimizer, total_steps=10, steps_per_epoch=5, **options)


def test_nothing_left_to_train_is_said() -> None:
    module = network().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is left to train"):
        create_optimizer(module, lr=0.1)


# -- schedules -----------------------------------------------------------------------------------------------


def official_cosine(
    base: float, final: float, epochs: int, per_epoch: int, warmup_epochs: int
) -> list[float]:
    """The learning rates of the official script (utils.py, cosine_scheduler), from their definition."""
    warmup = warmup_epochs * per_epoch
    rest = epochs * per_epoch - warmup
    rising = [base * i / max(warmup - 1, 1) for i in range(warmup)]
    falling = [final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    return rising + falling


@pytest.mark.parametrize(
    ("lr", "epochs", "warmup"), [(4e-3, 300, 20), (4e-3, 90, 5), (1e-3, 90, 5), (5e-5, 30, 0), (5e-5, 20, 0)]
)
def test_rates_are_the_official_schedule_step_by_step(lr: float, epochs: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    plan = cosine(
        optimizer,
        total_steps=3 * epochs,
        steps_per_epoch=3,
        warmup_epochs=warmup,
        min_ratio=1e-6 / lr,
        from_zero=True,
    )
    found = []
    for _ in range(3 * epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        plan.step()
    assert found == pytest.approx(official_cosine(lr, 1e-6, epochs, 3, warmup), rel=1e-9)


def test_the_first_step_trains_unless_the_warm_up_starts_at_zero() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    for from_zero, factor in ((False, 1 / 5), (True, 0.0)):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        plan = cosine(optimizer, total_steps=20, steps_per_epoch=5, from_zero=from_zero)
        assert plan.get_last_lr() == [factor]
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    assert constant(optimizer, total_steps=20, steps_per_epoch=5).get_last_lr() == [1.0]


def test_optimizer_state_holds_plain_values_only(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    """A checkpoint is read without running anything, so no list of the configuration may end up in it."""
    optimizer = instantiate(composed("optimizer.betas=[0.95,0.999]").optimizer)(network())
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["param_groups"][0]["betas"] == (0.95, 0.999)


@pytest.mark.parametrize(("opt", "fused"), [("adamw", True), ("sgd", True), ("lamb", None)])
def test_on_a_cpu_what_can_be_fused_is(opt: str, fused: bool | None) -> None:
    groups = create_optimizer(network(), opt=opt, lr=0.1).param_groups
    assert all(group.get("fused") == fused for group in groups)


def test_fused_or_not_is_the_same_arithmetic() -> None:
    each = [trained(opt="adamw", lr=0.1, weight_decay=0.1, fused=fused) for fused in (True, False)]
    for name, moved in each[0].items():
        torch.testing.assert_close(moved, each[1][name], rtol=1e-5, atol=1e-7)
