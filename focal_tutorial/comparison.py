"""One detector, one task, many ways to deal with imbalance: what chapters 3, 4 and 7 compare.

Everything but the setting is the same: images, network, schedule, seeds. The learning rate is chosen once for each
family of settings, from one grid, on images that the comparison itself does not use, so that no loss wins by its scale.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from focal_tutorial.checkpoint import read_checkpoint, write_json
from focal_tutorial.criterion import Criterion
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import evaluate
from focal_tutorial.losses import focal_term, focal_term_derivative
from focal_tutorial.neighbours import quality_focal_criterion, varifocal_criterion
from focal_tutorial.proposals import two_stage_tiny
from focal_tutorial.results import peak_memory
from focal_tutorial.retinanet import RetinaNet, build_model
from focal_tutorial.sampling import Bootstrapping, mine_hard_negatives, mine_online, sample_balanced
from focal_tutorial.train import TrainConfig, train

# One or two small objects among three to ten distractors: 1 foreground anchor to about 560 of background.
COMPARISON_RECIPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "shapes": {
            "num_train": 1000,
            "num_val": 300,
            "size": 192,
            "objects": (1, 2),
            "contrast": (35.0, 80.0),
            "clutter": 0.7,
        },
        "model": "retinanet_tiny",
        "model_options": {"levels": (2, 3, 4), "channels": 32, "widths": (32, 64, 96, 128)},
        "steps": 800,
        "batch_size": 4,
        "optimizer": "adamw",
        "warmup_steps": 50,
        "ema": 0.99,
        "flip": 0.0,  # bootstrapping keeps anchors per image, and all settings see the same images
        "clip_grad": 1.0,
        "threads": 1,
    },
}

CE: dict[str, Any] = {"alpha": None, "gamma": 0.0}
SGD: dict[str, Any] = {"optimizer": "sgd", "clip_grad": 0.0}  # the paper's, with nothing to catch it

# family: shares a learning rate. prior: π. train: settings of TrainConfig. sampler, quality, model: see
# `comparison_model`. The rest is `Criterion`'s.
SETTINGS: dict[str, dict[str, Any]] = {
    "ce_half": {"title": "CE from p = 0.5", "family": "ce_half", "prior": 0.5, **CE},
    "ce": {"title": "CE", "family": "ce", **CE},
    "ce_half_sgd": {
        "title": "CE from p = 0.5, SGD", "family": "ce_half_sgd", "prior": 0.5, "train": SGD, **CE
    },
    "ce_sgd": {"title": "CE, SGD", "family": "ce_sgd", "train": SGD, **CE},
    "bce_50": {"title": "balanced CE, α = 0.5", "family": "bce", "alpha": 0.5, "gamma": 0.0},
    "bce_75": {"title": "balanced CE, α = 0.75", "family": "bce", "alpha": 0.75, "gamma": 0.0},
    "bce_90": {"title": "balanced CE, α = 0.9", "family": "bce", "alpha": 0.9, "gamma": 0.0},
    "bce_99": {"title": "balanced CE, α = 0.99", "family": "bce", "alpha": 0.99, "gamma": 0.0},
    "bce_998": {"title": "balanced CE, α = 0.998", "family": "bce", "alpha": 0.998, "gamma": 0.0},
    "fl05": {"title": "focal loss, γ = 0.5, α = 0.5", "family": "focal", "alpha": 0.5, "gamma": 0.5},
    "fl1": {"title": "focal loss, γ = 1, α = 0.25", "family": "focal", "alpha": 0.25, "gamma": 1.0},
    "fl2": {"title": "focal loss, γ = 2, α = 0.25", "family": "focal", "alpha": 0.25, "gamma": 2.0},
    "random": {"title": "random sampling, 1 : 3", "family": "sampled", "sampler": "random", **CE},
    "hard_negatives": {"title": "hard negatives, 1 : 3", "family": "sampled", "sampler": "hard", **CE},
    "ohem": {"title": "OHEM, 128 after NMS", "family": "sampled", "sampler": "ohem", **CE},
    "bootstrapping": {"title": "bootstrapping", "family": "sampled", "sampler": "bootstrapping", **CE},
    "proposals": {"title": "two stages: proposals, 1 : 3", "family": "proposals", "model": "two_stage"},
    "varifocal": {"title": "varifocal loss", "family": "quality", "quality": "varifocal"},
    "quality_focal": {"title": "quality focal loss", "family": "quality", "quality": "quality_focal"},
    "fl2_giou": {
        "title": "focal loss, GIoU for boxes", "family": "focal", "alpha": 0.25, "gamma": 2.0, "box_loss": "giou"
    },
    "fl2_ciou": {
        "title": "focal loss, CIoU for boxes", "family": "focal", "alpha": 0.25, "gamma": 2.0, "box_loss": "ciou"
    },
}  # fmt: skip

SAMPLERS: dict[str, Any] = {
    "random": lambda: lambda losses, labels, anchors: sample_balanced(labels, batch_size=64, foreground_fraction=0.25),
    "hard": lambda: lambda losses, labels, anchors: mine_hard_negatives(losses, labels, ratio=3.0),
    "ohem": lambda: functools.partial(mine_online, batch_size=128, nms_iou=0.5),
    "bootstrapping": Bootstrapping,
}
QUALITY_LOSSES = {"varifocal": varifocal_criterion, "quality_focal": quality_focal_criterion}

RATE_GRIDS = {
    "adamw": (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032),
    "sgd": (0.001, 0.003, 0.01, 0.03, 0.1),
}
RATE_SEED = 100  # the rates are chosen with another seed, on validation images
# The best of the grid for each family; `experiment run loss_rates` finds them again.
RATES: dict[str, dict[str, float]] = {
    "cpu": {
        "ce_half": 0.016, "ce": 0.016, "ce_half_sgd": 0.003, "ce_sgd": 0.01, "bce": 0.002, "focal": 0.001,
        "sampled": 0.001, "proposals": 0.004, "quality": 0.001,
    },
}  # fmt: skip
# The setting that a family's rate is chosen with.
RATE_SETTINGS = {
    "ce_half": "ce_half", "ce": "ce", "ce_half_sgd": "ce_half_sgd", "ce_sgd": "ce_sgd", "bce": "bce_75",
    "focal": "fl2", "sampled": "hard_negatives", "proposals": "proposals", "quality": "varifocal",
}  # fmt: skip

# Whether what a short training tells apart is still apart later.
LONG: dict[str, Any] = {"steps": 2400}
LONG_SETTINGS = ("ce", "fl2", "ohem")

# Settings and rates whose AP falls to 0 with some seed: does the model know nothing, or is it only not sure enough?
UNSURE = (("bce_50", 0.002), ("ce_sgd", 0.003), ("ce_sgd", 0.01), ("ce_half_sgd", 0.03))

PROBE_STEPS = (0, 5, 10, 20, 50, 100, 200, 400, 800, 1600, 2400)
PROBE_IMAGES = 16


def comparison_config(profile: str, lr: float, seed: int, out: Path | str, **changes: Any) -> TrainConfig:
    """The training run of one setting: the profile's recipe with a learning rate, a seed and a run folder."""
    recipe = {k: v for k, v in COMPARISON_RECIPES[profile].items() if k not in ("model", "model_options")}
    return TrainConfig(lr=lr, seed=seed, out=str(out), device="cpu" if profile == "cpu" else "cuda", **recipe | changes)


def scene_options(config: TrainConfig) -> dict[str, Any]:
    """The options of `ShapesDataset` for images like those that `config` trains on, whatever their number."""
    return {name: value for name, value in config.shapes.items() if name not in ("num_train", "num_val")}


def finished(record: Path, begun: dict[str, Any]) -> dict[str, Any] | None:
    """What the file `record` holds of a finished run that began as `begun` says; `None` if there is no such run."""
    if not record.exists():
        return None
    stored: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    begun = json.loads(json.dumps(begun))  # as it comes back from the file: lists for tuples
    return stored if stored.pop("begun") == begun else None


def comparison_model(setting: str, profile: str, seed: int) -> RetinaNet:
    """The network of a setting with the weights of `seed`, and the criterion that the setting stands for."""
    recipe, s = COMPARISON_RECIPES[profile], SETTINGS[setting]
    size = recipe["shapes"]["size"]
    options = {**recipe["model_options"], "canvas": (size, size)}
    torch.manual_seed(seed)
    if s.get("model") == "two_stage":
        return two_stage_tiny(3, **options)  # type: ignore[return-value]
    model = build_model({"builder": recipe["model"], "num_classes": 3, "prior": s.get("prior", 0.01), **options})
    model.criterion = Criterion(
        **{name: s[name] for name in ("alpha", "gamma", "box_loss") if name in s},
        quality_loss=QUALITY_LOSSES[s["quality"]] if "quality" in s else None,
        sampler=SAMPLERS[s["sampler"]]() if "sampler" in s else None,
    )
    return model


def loss_shares(logits: Tensor, labels: Tensor) -> dict[str, dict[str, float]]:
    """How much of the loss, and of its gradient, comes from foreground anchors, under three losses.

    Args:
        logits: `(N, R, K)`.
        labels: `(N, R)` integers, −1 background, −2 ignored.

    Returns:
        `{"loss": {"ce", "balanced" (α = 0.75), "focal" (α = 0.25, γ = 2)}, "gradient": {…}}`, shares in 0…1; the
        gradient's is that of the summed absolute derivatives by the logits.
    """
    foreground, background = logits[labels >= 0].double(), logits[labels == -1].double()  # (F, K), (B, K)
    truth = labels[labels >= 0][:, None] == torch.arange(logits.shape[-1], device=logits.device)  # (F, K)
    x_t = torch.where(truth, foreground, -foreground)
    shares: dict[str, dict[str, float]] = {"loss": {}, "gradient": {}}
    for name, alpha, gamma in (("ce", 0.5, 0.0), ("balanced", 0.75, 0.0), ("focal", 0.25, 2.0)):
        for what, term in (("loss", focal_term), ("gradient", focal_term_derivative)):
            objects = (torch.where(truth, alpha, 1 - alpha) * term(x_t, gamma)).abs().sum()
            rest = ((1 - alpha) * term(-background, gamma)).abs().sum()
            shares[what][name] = round(float(objects / (objects + rest)), 5)
    return shares


class Probe:
    """Looks at fixed training images as the model learns: `trace` gets a record at each of `PROBE_STEPS`."""

    def __init__(self, dataset: DetectionDataset, images: int = PROBE_IMAGES) -> None:
        items = [dataset[i] for i in range(images)]
        self.images = torch.stack([image.as_subclass(Tensor) for image, _ in items])  # (N, 3, H, W)
        self.targets = [target for _, target in items]
        self.trace: list[dict[str, Any]] = []

    @torch.no_grad()
    def __call__(self, step: int, model: RetinaNet) -> None:
        if step not in PROBE_STEPS:
            return
        device = next(model.parameters()).device
        batch, _, _, targets = model.preprocess(self.images.to(device), self.targets)
        logits, _ = model.network(batch)
        anchors = torch.cat(model.anchors((batch.shape[-2], batch.shape[-1]), device))
        labels, _ = model.criterion.match(anchors, targets)
        foreground = labels >= 0
        truth = logits[foreground].gather(1, labels[foreground][:, None]).sigmoid()
        self.trace.append(
            {
                "step": step,
                "p_foreground": round(float(truth.mean()), 5),
                "p_background": round(float(logits[labels == -1].sigmoid().mean()), 7),
                **loss_shares(logits, labels),
            }
        )


def run_setting(
    setting: str, profile: str, lr: float, seed: int, out: Path, *, threshold: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Train one setting with one seed and measure it: "metrics", "trace", "diverged", "seconds", "peak_memory_mib".

    The metrics are those on the test images, `validation_AP` that on the validation images; 0 for a run whose loss is
    not finite, and `diverged` then says at which step. What `out` holds of a finished run with the same settings is
    read, not made again.

    Args:
        setting: a key of `SETTINGS`.
        profile: "cpu" or "gpu".
        lr: learning rate.
        seed: of the first weights and the order of the images.
        out: folder for the record and, until it is finished, the run.
        threshold: score that a detection on the test images needs; by default the model's, 0.05.
        changes: settings of `TrainConfig` to change.
    """
    record, folder = out / "record.json", out / "run"
    begun = {"setting": SETTINGS[setting], "recipe": {**COMPARISON_RECIPES[profile], **changes}, "lr": lr, "seed": seed}
    if threshold is not None:
        begun["threshold"] = threshold
    if (stored := finished(record, begun)) is not None:
        return stored
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    start = time.perf_counter()
    config = comparison_config(profile, lr, seed, folder, **SETTINGS[setting].get("train", {}), **changes)
    scenes = scene_options(config)
    model = comparison_model(setting, profile, seed).to(config.device)
    probe = None
    if isinstance(model, RetinaNet):
        probe = Probe(ShapesDataset(PROBE_IMAGES, **scenes))
        probe(0, model)
    metrics: dict[str, Any] = dict.fromkeys(("AP", "AP50", "AP75", "AR100", "validation_AP"), 0.0)
    diverged = None
    try:
        trained = train(config, model=model, after_step=probe, progress=False)
    except InputError as error:
        if "not finite" not in str(error):
            raise
        diverged = str(error)  # nothing detected: an AP of 0
    else:
        model.load_state_dict(read_checkpoint(folder / "best.pt")["model"])  # the averaged weights
        if threshold is not None:
            model.options = replace(model.options, score_threshold=threshold)
        found = evaluate(model, ShapesDataset(config.shapes["num_val"], split="test", **scenes))
        metrics = {name: found[name] for name in metrics if name in found} | {"validation_AP": trained["best"]["AP"]}
    run = {
        "metrics": metrics,
        "trace": probe.trace if probe else [],
        "diverged": diverged,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mib": peak_memory(config.device),
    }
    shutil.rmtree(folder)
    write_json(record, {"begun": begun, **run})
    return run


def losses_recipe(profile: str) -> dict[str, Any]:
    """The configuration of the comparison as its result holds it."""
    return {**COMPARISON_RECIPES[profile], "settings": SETTINGS, "rates": RATES[profile]}


def long_recipe(profile: str) -> dict[str, Any]:
    """The configuration of the long runs as their result holds it."""
    kept = {name: SETTINGS[name] for name in LONG_SETTINGS}
    rates = {s["family"]: RATES[profile][s["family"]] for s in kept.values()}
    return {**COMPARISON_RECIPES[profile], **LONG, "settings": kept, "rates": rates}


def unsure_recipe(profile: str) -> dict[str, Any]:
    """The configuration of the runs without a score threshold as their result holds it."""
    kept = {name: SETTINGS[name] for name, _ in UNSURE}
    return {**COMPARISON_RECIPES[profile], "settings": kept, "runs": UNSURE, "threshold": 0.0}


def rates_recipe(profile: str) -> dict[str, Any]:
    """The configuration of the choice of learning rates as its result holds it."""
    chosen_with = {name: SETTINGS[name] for name in RATE_SETTINGS.values()}
    return {**COMPARISON_RECIPES[profile], "settings": chosen_with, "grids": RATE_GRIDS}


def run_losses(profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any) -> dict[str, Any]:
    """Every setting with one seed: "metrics", "trace" and "diverged" of `run_setting` by setting, and its cost."""
    return _run_settings([*SETTINGS], profile, seed, out, **changes)


def run_long(profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any) -> dict[str, Any]:
    """`LONG_SETTINGS` with one seed and three times the steps, at the rates of the short runs."""
    return _run_settings(LONG_SETTINGS, profile, seed, out, **{**LONG, **changes})


def run_unsure(profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any) -> dict[str, Any]:
    """`UNSURE` with one seed, every detection counted whatever its score; `{"metrics": {setting_rate: …}}`."""
    runs = {}
    for setting, lr in UNSURE:
        name = unsure_name(setting, lr)
        runs[name] = run_setting(setting, profile, lr, seed, out / name, threshold=0.0, **changes)
    return {"metrics": {name: run["metrics"] for name, run in runs.items()}, **_cost([*runs.values()])}


def unsure_name(setting: str, lr: float) -> str:
    """The key of a setting at a rate, as "ce_sgd_0_01"."""
    return f"{setting}_{lr:g}".replace(".", "_")


def _run_settings(names: Sequence[str], profile: str, seed: int, out: Path, **changes: Any) -> dict[str, Any]:
    runs = {
        name: run_setting(name, profile, RATES[profile][SETTINGS[name]["family"]], seed, out / name, **changes)
        for name in names
    }
    by_setting = {what: {name: run[what] for name, run in runs.items()} for what in ("metrics", "trace", "diverged")}
    return {**by_setting, **_cost([*runs.values()])}


def _cost(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Time of all runs, also of those that were only read, and the most memory of any."""
    peaks = [run["peak_memory_mib"] for run in runs if run["peak_memory_mib"] is not None]
    return {"seconds": round(sum(run["seconds"] for run in runs), 1), "peak_memory_mib": max(peaks, default=None)}


def rate_grid(setting: str, profile: str) -> tuple[float, ...]:
    """The learning rates that the setting's optimiser is tried with."""
    recipe = {**COMPARISON_RECIPES[profile], **SETTINGS[setting].get("train", {})}
    return RATE_GRIDS[recipe["optimizer"]]


def run_rates(profile: str, seed: int, out: Path, root: Path | str | None = None, **changes: Any) -> dict[str, Any]:
    """Every family at every rate of the grid: `{"metrics": {family: {"lr": the best, "AP": {rate: validation}}}}`."""
    metrics: dict[str, Any] = {}
    everything: list[dict[str, Any]] = []
    for family, setting in RATE_SETTINGS.items():
        runs = {
            lr: run_setting(setting, profile, lr, seed, out / f"{family}-{lr:g}", **changes)
            for lr in rate_grid(setting, profile)
        }
        found = {lr: float(run["metrics"]["validation_AP"]) for lr, run in runs.items()}
        everything += runs.values()
        metrics[family] = {
            "lr": max(found, key=lambda lr: found[lr]),
            "AP": {str(lr).replace(".", "_"): ap for lr, ap in found.items()},
        }
    return {"metrics": metrics, **_cost(everything)}
