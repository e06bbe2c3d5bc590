"""The paper's tables as cells: one task, one setting of loss, anchors or scale, one seed.

A table holds its settings; a profile says on which task and how large they are run. Everything that a setting does not
name is the same for all of them. `focal_tutorial.paper` holds the tables themselves.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from focal_tutorial.cells import Config, Record
from focal_tutorial.checkpoint import read_checkpoint
from focal_tutorial.criterion import Criterion
from focal_tutorial.data.bccd import prepare_bccd
from focal_tutorial.data.coco import CocoDataset
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import detect, evaluate, evaluate_coco
from focal_tutorial.hinge import hinge_loss
from focal_tutorial.loss_distribution import loss_distribution
from focal_tutorial.losses import focal_loss_star, sigmoid_focal_loss
from focal_tutorial.results import describe_device, git_commit, peak_memory
from focal_tutorial.retinanet import RetinaNet, build_model
from focal_tutorial.sampling import mine_hard_negatives, mine_online
from focal_tutorial.train import TrainConfig, train
from focal_tutorial.train_setup import computing, resume_or_start

LOSSES: dict[str, Callable[..., Tensor]] = {
    "focal": sigmoid_focal_loss, "star": focal_loss_star, "hinge": hinge_loss,
}  # fmt: skip
MATCHING = ("foreground_iou", "background_iou", "low_quality_iou")  # of a model's options, the criterion's
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")


@dataclass(frozen=True)
class Table:
    """One table or figure of the paper.

    Attributes:
        title: its subject.
        settings: name → what it changes; see `cell_config`. `title` is for people. `seeds`: more than the table's.
        tasks: profile → the task, as in `focal_tutorial.paper.TASKS`.
        rates: profile → learning rate of each family.
        minutes: profile → minutes a seed, one cell after the other; on the CPU measured on one core.
        seeds: how many for each setting, and the first.
    """

    title: str
    settings: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    rates: dict[str, dict[str, float]]
    minutes: dict[str, float]
    seeds: int = 3
    first_seed: int = 0

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """The configuration of each profile, as its result holds it."""
        return {
            profile: {"task": task, "settings": self.settings, "rates": self._rates(profile)}
            for profile, task in self.tasks.items()
        }

    def _rates(self, profile: str) -> dict[str, float]:
        families = {s["family"] for s in self.settings.values() if "family" in s}
        return {family: rate for family, rate in self.rates[profile].items() if family in families}

    def seeds_of(self, setting: str, seeds: int | None = None) -> range:
        """The seeds of a setting: `seeds`, or else the setting's own number, or else the table's."""
        number = seeds or self.settings[setting].get("seeds", self.seeds)
        return range(self.first_seed, self.first_seed + number)


def cell_config(setting: dict[str, Any], task: dict[str, Any], rates: dict[str, float], seed: int) -> Config:
    """All that decides a cell's result, in the form in which it comes back from JSON.

    Args:
        setting: `family`, whose learning rate it takes, or `lr`; `loss` ("focal" by default, "star", "hinge") and its
            `alpha`, `gamma`, `beta`, `margin`; `sampler` ("ohem" or "hard", and its options); `model`, `train`,
            `shapes`: what it changes of the task's; `test_shapes`: what is different in the images that are validated
            and tested on; `longer`: factor of the task's steps; `measure`: what is measured beside AP.
        task: `data` ("shapes" or "bccd"), `shapes`, `model` (a builder and its options), `train`.
        rates: of the families.
        seed: of the first weights and the order of the images.
    """
    config = {
        "data": task["data"],
        "shapes": {**task.get("shapes", {}), **setting.get("shapes", {})},
        "test_shapes": setting.get("test_shapes", {}),
        "model": {**task["model"], **setting.get("model", {})},
        "train": {**task["train"], **_longer(setting, task), **setting.get("train", {})},
        "loss": {"name": setting.get("loss", "focal")}
        | {name: setting[name] for name in ("alpha", "gamma", "beta", "margin") if name in setting},
        "sampler": setting.get("sampler"),
        "measure": setting.get("measure"),
        "lr": setting["lr"] if "lr" in setting else rates[setting["family"]],
        "seed": seed,
    }
    return dict(json.loads(json.dumps(config)))


def _longer(setting: dict[str, Any], task: dict[str, Any]) -> dict[str, int]:
    return {"steps": round(setting["longer"] * task["train"]["steps"])} if "longer" in setting else {}


def cell_criterion(config: Config) -> Criterion:
    """The training loss that a cell stands for."""
    options = {name: value for name, value in config["loss"].items() if name != "name"}
    loss = functools.partial(LOSSES[config["loss"]["name"]], reduction="sum", **options)
    return Criterion(
        classification_loss=loss,
        sampler=cell_sampler(config["sampler"]) if config["sampler"] else None,
        **{name: config["model"][name] for name in MATCHING if name in config["model"]},
    )


def cell_sampler(options: dict[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`mine_online` ("ohem") or `mine_hard_negatives` ("hard") with the other options."""
    given = {name: value for name, value in options.items() if name != "name"}
    if options["name"] == "ohem":
        return functools.partial(mine_online, **given)
    return lambda losses, labels, anchors: mine_hard_negatives(losses, labels, **given)


def cell_data(config: Config, split: str, root: Path | str | None = None) -> DetectionDataset:
    """The images of a split, "train", "val" or "test"."""
    if config["data"] == "bccd":
        paths = prepare_bccd(root)
        return CocoDataset(paths["images"], paths[split])
    options = {**config["shapes"], **(config["test_shapes"] if split != "train" else {})}
    train_images, val_images = options.pop("num_train"), options.pop("num_val")
    number = {"train": train_images, "val": val_images, "test": options.pop("num_test", val_images)}[split]
    return ShapesDataset(number, split=split, **options)


def cell_training(config: Config, folder: Path, root: Path | str | None = None, **changes: Any) -> TrainConfig:
    """The training run of a cell, into `folder`."""
    data: dict[str, Any] = {"shapes": {k: v for k, v in config["shapes"].items() if k != "num_test"}}
    if config["test_shapes"]:
        data["shapes"]["num_val"] = 1  # `train` draws it like its own; `train_cell` validates on those of `cell_data`
    if config["data"] == "bccd":
        paths = prepare_bccd(root)
        data = {"images": str(paths["images"]), "annotations": str(paths["train"])}
        data |= {"val_images": str(paths["images"]), "val_annotations": str(paths["val"]), "cache": True}
    settings = {**data, **config["train"], "lr": config["lr"], "seed": config["seed"], "out": str(folder)}
    return TrainConfig(**{**settings, **changes})


def cell_model(config: Config, training: TrainConfig) -> RetinaNet:
    """The network of a cell with the first weights of its seed, and its loss."""
    torch.manual_seed(config["seed"])
    model = build_model({"num_classes": 3, "canvas": training.canvas, **config["model"]})
    model.criterion = cell_criterion(config)
    return model.to(training.device)


def train_cell(config: Config, folder: Path, root: Path | str | None = None) -> Record:
    """Train a cell, or go on with it, and test it.

    Args:
        config: of `cell_config`.
        folder: of the training run; what a stopped one left there is gone on from.
        root: data root.

    Returns:
        A dictionary. Its `metrics` are COCO's on the test images with the paper's score threshold, `AP_any` the AP
        without one (every detection counts, however unsure) and `validation_AP`; all 0 for a run whose loss is not
        finite, which `diverged` then tells in words. `measured` is what the configuration's `measure` names.
        `seconds`, `peak_memory_mib`, `device` and `commit` say what it cost, where, and with which code.
    """
    training = cell_training(config, folder, root)
    with computing(training):
        return _train_and_test(config, training, folder, root)


def _train_and_test(config: Config, training: TrainConfig, folder: Path, root: Path | str | None) -> Record:
    start, commit = time.perf_counter(), git_commit()
    if training.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    resume_or_start(training)
    if training.resume:
        start -= read_checkpoint(folder / "last.pt")["seconds"]  # it has cost these too
    model = cell_model(config, training)
    metrics: dict[str, Any] = dict.fromkeys((*METRICS, "AP_any", "validation_AP"), 0.0)
    diverged, measured = None, None
    try:
        trained = train(training, model=model, progress=False)
    except InputError as error:
        if "not finite" not in str(error):
            raise
        diverged = str(error)
    else:
        model.load_state_dict(read_checkpoint(folder / "best.pt")["model"])  # the averaged weights
        test_set = cell_data(config, "test", root)
        validation = evaluate(model, cell_data(config, "val", root)) if config["test_shapes"] else trained["best"]
        metrics = test_metrics(model, test_set) | {"validation_AP": validation["AP"]}
        if config["measure"]:
            measured = MEASURES[config["measure"]](model.eval(), test_set)
    return {
        "metrics": metrics,
        "measured": measured,
        "diverged": diverged,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mib": peak_memory(training.device),
        "device": describe_device(training.device),
        "commit": commit,
    }


def test_metrics(model: RetinaNet, dataset: DetectionDataset) -> dict[str, Any]:
    """`METRICS` with the model's score threshold, and "AP_any" without one, from one pass over the images."""
    options = model.options
    model.options = replace(options, score_threshold=0.0)
    found = detect(model, dataset)
    model.options = options
    annotations = dataset.coco_dict()
    # Scores fall within an image, and NMS and the limits take the best first: what is above the threshold is the same.
    sure = [detection for detection in found if detection["score"] > options.score_threshold]
    metrics = evaluate_coco(annotations, sure)
    every = evaluate_coco(annotations, found)
    return {**{name: metrics.get(name) for name in METRICS}, "AP_any": every["AP"]}


@torch.inference_mode()
def inference_time(model: RetinaNet, dataset: DetectionDataset, images: int = 30) -> dict[str, Any]:
    """Median time from one image to its detections in milliseconds, of `images` after five that do not count."""
    device = next(model.parameters()).device
    times = []
    for index in range(images + 5):
        image = dataset[index % len(dataset)][0].as_subclass(Tensor).to(device)
        start = time.perf_counter()
        model([image])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return {"milliseconds": round(statistics.median(times[5:]), 2)}


MEASURES: dict[str, Callable[[RetinaNet, DetectionDataset], dict[str, Any]]] = {
    "time": inference_time, "distribution": loss_distribution,
}  # fmt: skip
