"""What `inspect` and `evaluate` of the command line need beyond the package's functions: settings, tables, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from focal_tutorial.checkpoint import write_json
from focal_tutorial.data.coco import CocoData
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import Metrics, Results, pr_curves
from focal_tutorial.imbalance_text import table
from focal_tutorial.plotting import plot_precision_recall, save_figure
from focal_tutorial.predict import write_results
from focal_tutorial.preprocess import Preprocess
from focal_tutorial.retinanet import BUILDERS, RetinaNet, build_model
from focal_tutorial.train import load_checkpoint
from focal_tutorial.train_config import median_canvas


def anchor_setting(
    data: CocoData,
    model: str,
    options: dict[str, Any],
    canvas: tuple[int, int] | None,
    checkpoint: str | Path | None,
) -> dict[str, Any]:
    """Arguments of `imbalance_report`, anchors, input and thresholds, for a checkpoint or for what `train` would build.

    Raises:
        InputError: for an unknown builder or option.
    """
    if checkpoint is not None:
        if options:
            raise InputError(
                "--option and --checkpoint: the checkpoint's model has its options already; give one of them"
            )
        trained = load_checkpoint(checkpoint)
        return _setting(trained, Preprocess(canvas=canvas) if canvas else trained.preprocess)
    if model not in BUILDERS:
        raise InputError(f"--model: one of {', '.join(BUILDERS)} wanted, got {model!r}")
    size = canvas or median_canvas([(image["height"], image["width"]) for image in data.images])
    try:
        with torch.device("meta"):  # the shapes of the layers, without their weights
            built = build_model({"builder": model, "num_classes": len(data.class_names), "canvas": size, **options})
    except (ValueError, TypeError) as error:
        raise InputError(f"--option: {error}") from error
    return _setting(built, Preprocess(canvas=size))


def _setting(model: RetinaNet, preprocess: Preprocess) -> dict[str, Any]:
    thresholds = model.options.pick("foreground_iou", "background_iou")
    return {"anchors": model.anchors, "preprocess": preprocess, **thresholds}


def metrics_text(metrics: Metrics) -> str:
    """The metrics of `evaluate` as a table, in per cent."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
    rows = [["", *keys], ["all", *(percent(metrics[key]) for key in keys)]]
    for name, values in metrics["per_class"].items():
        rows.append([name, *(percent(values.get(key)) if key in values else "" for key in keys)])
    return f"COCO metrics in per cent (–: undefined, no such boxes)\n{table(rows)}\n"


def write_evaluation(out: Path, annotations: dict[str, Any], results: Results, metrics: Metrics) -> None:
    """metrics.json, detections.json and precision_recall.png into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", metrics)
    write_results(out / "detections.json", results)
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    alt = plot_precision_recall(figure.subplots(), pr_curves(annotations, results))
    save_figure(figure, out / "precision_recall.png", alt=alt)
