"""torchvision's RetinaNet as a checkpoint of this package: logit columns by category id → labels 0…K−1 with names.

torchvision's column *is* the category id: COCO's ids run from 1 to 90 with ten gaps, so its model has 91 columns, of
which column 0 and the gaps never mean anything. Here label k is the k-th category of the annotation file.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from focal_tutorial.checkpoint import save_checkpoint
from focal_tutorial.data.coco import load_json
from focal_tutorial.data.coco_images import check_categories
from focal_tutorial.errors import InputError
from focal_tutorial.retinanet import RetinaNet, build_model, retinanet_resnet50_fpn
from focal_tutorial.weights import read_weights

LAST = "head.classification.predict."


def keep_classes(model: RetinaNet, labels: Sequence[int], names: Sequence[str] | None = None) -> RetinaNet:
    """A copy of `model` that knows only these classes: its label k is `labels[k]` of `model`.

    Args:
        model: with a `config`, as the builders give it.
        labels: distinct, each in 0…K−1.
        names: of the kept classes; by default the model's own.

    Raises:
        ValueError: for labels out of range or named twice, or another number of names.
    """
    kept = list(labels)
    if not kept or len(set(kept)) != len(kept) or not all(0 <= k < model.num_classes for k in kept):
        raise ValueError(f"labels: distinct ones in 0…{model.num_classes - 1} wanted, got {kept[:5]}")
    if names is None and model.class_names is not None:
        names = [model.class_names[k] for k in kept]
    if names is not None and len(names) != len(kept):
        raise ValueError(f"names: {len(kept)} wanted, one per label, got {len(names)}")
    state = model.state_dict()
    for name in (LAST + "weight", LAST + "bias"):  # (A·K, …), an anchor's classes side by side
        rows = state[name].unflatten(0, (-1, model.num_classes))[:, kept]  # (A, len(kept), …)
        state[name] = rows.flatten(0, 1)
    smaller = build_model({**model.config, "num_classes": len(kept)})
    smaller.load_state_dict(state)
    smaller.class_names = None if names is None else list(names)
    return smaller.to(next(model.parameters()).device).train(model.training)


def coco_columns() -> dict[int, str]:
    """Category id → name of the 80 columns that mean something in torchvision's COCO weights."""
    names = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {column: name for column, name in enumerate(names) if name not in ("__background__", "N/A")}


def columns_of(
    num_columns: int, annotation_file: str | Path | None = None, *, coco_weights: bool = False
) -> dict[int, str]:
    """Category id → name of the columns to keep: those of the annotation file, or else COCO's.

    Args:
        num_columns: of the weights; 91 alone does not make them COCO's, as torchvision's script trains 91 on any data.
        coco_weights: known to be trained on COCO, so that the file must call its categories as COCO does.

    Raises:
        InputError: where the file's categories cannot be these columns.
    """
    coco = coco_columns()
    if annotation_file is None:
        if num_columns != len(RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]):
            raise InputError(
                f"the weights have {num_columns} columns and are not COCO's; name an annotation file whose "
                "category ids are the columns"
            )
        return coco
    categories = check_categories(load_json(Path(annotation_file))["categories"], str(annotation_file), [])
    columns = {category["id"]: category["name"] for category in categories}
    if not columns or not all(0 <= column < num_columns for column in columns):
        raise InputError(f"{annotation_file}: category ids in 0…{num_columns - 1}, the weights' columns, wanted")
    other = [k for k, name in columns.items() if coco_weights and coco.get(k) != name]
    if other:
        raise InputError(
            f"{annotation_file} calls category {other[0]} {columns[other[0]]!r}, but in COCO's weights that column is "
            f"{coco.get(other[0], 'not used')!r}; to train for other classes use `focal-tutorial train --weights`"
        )
    return columns


def convert_weights(
    weights: str | PathLike[str], out: str | PathLike[str], annotation_file: str | Path | None = None
) -> RetinaNet:
    """Write torchvision's `retinanet_resnet50_fpn` weights as a checkpoint that `load_checkpoint` reads.

    Args:
        weights: "COCO_V1" (downloaded by torchvision), or a file of its state dict or of its training script.
        out: the checkpoint to write.
        annotation_file: COCO JSON whose category ids are the columns and give the names; by default COCO's 80.

    Returns:
        The model in eval mode, under torchvision's settings, with label k the k-th category by id.

    Raises:
        InputError: where the weights cannot be read, do not fit the categories, or `out` cannot be written.
    """
    loaded = read_weights(weights, "resnet50")
    if not loaded.from_torchvision:
        raise InputError(
            f"{weights}: a state dict of torchvision's retinanet_resnet50_fpn wanted; "
            "a checkpoint of this package needs no conversion"
        )
    full = retinanet_resnet50_fpn(weights=loaded)
    columns = columns_of(full.num_classes, annotation_file, coco_weights=loaded.from_coco)
    model = keep_classes(full, list(columns), list(columns.values())).eval()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, dict[str, torch.Tensor] | object] = {
        "model": model.state_dict(),
        "model_config": model.config,
        "class_names": model.class_names,
    }
    save_checkpoint(out, state)
    return model
