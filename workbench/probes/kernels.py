"""action=probe_kernels: the merged kernels by stage, their energy by radius, and their reach."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from backbone.probes import energy_by_radius, mean_radius, merged_kernels, reach
from workbench import figures
from workbench.build import refused_settings
from workbench.console import print_table
from workbench.errors import UsageError
from workbench.files import write_findings, write_table
from workbench.probes import drawing
from workbench.probes.common import asked_about, composed_network, from_checkpoint, plain, show_files
from workbench.results import write_config


def probe(cfg: DictConfig) -> float | None:
    """Write `kernels.json`, `kernels.csv` and two figures; returns the mean reach / size of the large kernels."""
    options = cfg.action
    if options.channels < 1:
        raise UsageError(f"action.channels must be at least 1, not {options.channels}")
    # A checkpoint is self-contained; without one, the network's sizes depend on the data.
    probed = from_checkpoint(cfg, cfg.ckpt) if cfg.ckpt is not None else asked_about(cfg)[0]
    fresh = probed.cfg.copy()
    fresh.backbone.pretrained = None
    kernels = merged_kernels(probed.backbone)
    before = merged_kernels(composed_network(fresh, probed.task.data_info).backbone)
    if not kernels:
        raise UsageError("this network has no depthwise convolution (every kernel size is 0)")
    rows: list[dict[str, Any]] = []
    with refused_settings():
        for kernel, start in zip(kernels, before, strict=True):
            energy = energy_by_radius(kernel.weight_CKK)
            initial = energy_by_radius(start.weight_CKK)
            rows.append(
                {
                    "stage": kernel.stage,
                    "block": kernel.block,
                    "kernel_size": kernel.size,
                    "reach": reach(energy, options.share),
                    "reach_untrained": reach(initial, options.share),
                    "mean_radius": round(mean_radius(energy), 4),
                    "mean_radius_untrained": round(mean_radius(initial), 4),
                    "energy_by_radius": energy.tolist(),
                    "energy_by_radius_untrained": initial.tolist(),
                }
            )
    write_config(probed.cfg)
    folder = Path(cfg.paths.run)
    write_findings(
        folder / "kernels.json", plain({"network": probed.name, "share": options.share, "blocks": rows})
    )
    columns = ["stage", "block", "kernel_size", "reach", "reach_untrained"]
    columns += ["mean_radius", "mean_radius_untrained"]
    write_table(folder / "kernels.csv", rows, columns)
    pictures = [folder / "figures" / name for name in ("kernels.png", "kernel_energy.png")]
    figures.save(drawing.kernels(kernels, options.channels, probed.name), pictures[0])
    figures.save(drawing.kernel_energy(rows, options.share, probed.name), pictures[1])
    shown = [tuple(str(row[column]) for column in columns) for row in rows]
    title = f"Square that holds {options.share:.0%} of a kernel's energy, pixels a side: {probed.name}"
    heads = ("stage", "block", "kernel", "reach", "untrained", "mean radius", "untrained")
    print_table(title, shown, heads)
    show_files(folder / "kernels.json", folder / "kernels.csv", *pictures)
    large = [row["reach"] / row["kernel_size"] for row in rows if row["kernel_size"] >= 7]
    return sum(large) / len(large) if large else None
