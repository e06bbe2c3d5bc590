"""Average precision as COCO defines it: detections → COCO results → pycocotools → a dictionary of fractions.

The arithmetic of AP is pycocotools' own. This module turns what the model says into what pycocotools reads,
keeps it quiet, and guards the places where it would fail (no detections) or miscount without a word
(annotation id 0).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from focal_tutorial._numbers import is_number
from focal_tutorial.data.coco_images import category_name, is_int, short
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.distributed import gather_lists, rank, share, world_size
from focal_tutorial.errors import InputError
from focal_tutorial.stopping import leave_stopping_to_parent

Metrics = dict[str, Any]
Results = list[dict[str, Any]]

Annotations = str | PathLike[str] | dict[str, Any]

COCO_KEYS = ("images", "annotations", "categories")
RESULT_FIELDS = frozenset({"image_id", "category_id", "bbox", "score"})
AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    amp: str = "none",
    workers: int = 0,
    progress: bool = False,
) -> Metrics:
    """COCO metrics of `model` on `dataset`: those of `evaluate_coco`.

    Under torchrun each process takes its share of the images, rank 0 gathers the detections once and
    computes, and every process gets the metrics.

    Args:
        dataset: without transforms, so that boxes are in the pixels of its annotations.
        batch_size: in images.
        device: to run on; by default where the model is.
        amp: "none", "bf16" or "fp16".
        workers: processes that decode images beside the model; 0 for none.
        progress: show a bar.

    Raises:
        InputError: if model and dataset do not speak of the same classes, or an image cannot be read.
    """
    results = detect(model, dataset, batch_size=batch_size, device=device, amp=amp, workers=workers, progress=progress)
    return share(evaluate_coco(dataset.coco_dict(), results) if rank() == 0 else {})


def detect(
    model: nn.Module,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    amp: str = "none",
    workers: int = 0,
    progress: bool = False,
) -> Results:
    """Every detection of `model` on `dataset` as COCO results; arguments and faults as `evaluate`.

    The model resizes the images itself, so one with a canvas sees one static shape. Its mode comes back as it
    was. Under torchrun rank 0 returns the results of all processes, the others an empty list.
    """
    check_classes(model, dataset)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(device)
    # A generator of its own: a DataLoader without one draws from the global generator, and an evaluation in
    # the middle of a training run must not change the run.
    loader = DataLoader(
        _Share(dataset),
        batch_size,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),
        worker_init_fn=leave_stopping_to_parent,
    )
    dtype = AMP_DTYPES[amp]
    results: Results = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            for batch in tqdm(loader, desc="evaluate", leave=False, disable=None if progress else True):
                if isinstance(batch, InputError):
                    raise batch
                images, image_ids = batch
                detections = model([image.to(device, non_blocking=True) for image in images])
                results += detections_to_coco(detections, image_ids, dataset.category_ids)
    finally:
        model.train(was_training)
    return gather_lists(results)


class _Share(Dataset[Any]):
    """Every world_size-th item. An InputError is returned, not raised: a worker would wrap it in its traceback."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
        self.indices = range(rank(), len(dataset), world_size())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[self.indices[index]]
        except InputError as error:
            return error


def _collate(samples: list[Any]) -> tuple[list[Tensor], list[int]] | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    images = [image.as_subclass(Tensor) for image, _ in samples]  # plain tensors, free of tv_tensors' dispatch
    return images, [target["image_id"] for _, target in samples]


def detections_to_coco(
    detections: Sequence[dict[str, Tensor]], image_ids: Sequence[int], category_ids: Sequence[int]
) -> Results:
    """COCO results, one `{"image_id", "category_id", "bbox" (xywh, pixels), "score"}` for each detection.

    Args:
        detections: per image `{"boxes": (D, 4) xyxy, "scores": (D,), "labels": (D,) in 0…K−1}`.
        image_ids: one per image.
        category_ids: the K ids that the labels stand for.

    Raises:
        ValueError: for another number of image ids than of detections.
    """
    if len(detections) != len(image_ids):
        raise ValueError(f"image_ids: one per image wanted, got {len(image_ids)} for {len(detections)} images")
    results: Results = []
    for found, image_id in zip(detections, image_ids, strict=True):
        corners = found["boxes"].detach().float()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()  # (D, 4) xywh
        for box, score, label in zip(boxes, found["scores"].tolist(), found["labels"].tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score})
    return results


def evaluate_coco(annotations: Annotations, results: Results | str | PathLike[str]) -> Metrics:
    """COCO's box metrics of `results` against `annotations`, as fractions in 0…1, `None` where undefined.

    Keys: AP (the mean over IoU .50, .55, … .95), AP50, AP75, APs, APm, APl (boxes of area up to 32², 96²,
    above), AR1, AR10, AR100 (recall with so many detections an image), per_class {name: {"AP", "AP50"}}. At
    most 100 detections per image and class count. Crowd boxes neither help nor hurt.

    Args:
        annotations: COCO annotation file, or the dictionary in it.
        results: COCO results, or a JSON file of them.

    Raises:
        InputError: for files that cannot be read, and results of images or categories that are not in
            `annotations`.
    """
    coco_eval = run_coco_eval(annotations, results)
    precision = coco_eval.eval["precision"][..., -1]  # (10 IoUs, 101 recalls, K, 4 areas), at 100 detections
    recall = coco_eval.eval["recall"]  # (10, K, 4, 3 numbers of detections)
    return {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
        **{f"AP{size}": _mean(precision[..., area]) for area, size in enumerate("sml", start=1)},
        **{f"AR{most}": _mean(recall[:, :, 0, m]) for m, most in enumerate((1, 10, 100))},
        "per_class": {
            name: {"AP": _mean(precision[:, :, k, 0]), "AP50": _mean(precision[0, :, k, 0])}
            for k, name in enumerate(_class_names(coco_eval))
        },
    }


def pr_curves(
    annotations: Annotations, results: Results | str | PathLike[str], *, iou: float = 0.5
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Per class with boxes `{"recall", "precision", "score"}`, each `(101,)`: precision at COCO's 101 recalls.

    The score is the threshold that reaches that recall, 0 where none does. The precision is COCO's: made
    monotone, and 0 beyond the last recall reached, so that its mean is the class's AP at `iou`.

    Args:
        annotations, results: as for `evaluate_coco`.
        iou: one of .50, .55, … .95.

    Raises:
        ValueError: for another `iou`.
        InputError: as `evaluate_coco`.
    """
    coco_eval = run_coco_eval(annotations, results)
    near = np.flatnonzero(np.isclose(coco_eval.params.iouThrs, iou))
    if len(near) == 0:
        raise ValueError(f"iou: one of .50, .55, … .95 wanted, got {iou}")
    precision = coco_eval.eval["precision"][near[0], :, :, 0, -1]  # (101, K)
    scores = coco_eval.eval["scores"][near[0], :, :, 0, -1]  # (101, K)
    return {
        name: {"recall": coco_eval.params.recThrs.copy(), "precision": precision[:, k], "score": scores[:, k]}
        for k, name in enumerate(_class_names(coco_eval))
        if precision[0, k] > -1
    }


def run_coco_eval(annotations: Annotations, results: Results | str | PathLike[str]) -> COCOeval:
    """pycocotools' COCOeval for boxes, evaluated and accumulated in silence; faults as `evaluate_coco`."""
    truth = ground_truth(annotations)
    rows = _read_results(results)
    for result in rows:
        if result["image_id"] not in truth.imgs or result["category_id"] not in truth.cats:
            raise InputError(
                f"the results name image {result['image_id']} and category {result['category_id']}, of which "
                f"{_name(annotations)} lacks one; evaluate against the annotations that they were made for"
            )
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools' loadRes looks at its first result, so no detections at all is a case of its own
        found = truth.loadRes(rows) if rows else _index({**truth.dataset, "annotations": []})
        coco_eval = COCOeval(truth, found, iouType="bbox")
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval


def _read_results(results: Results | str | PathLike[str]) -> Results:
    """COCO results, checked, as new dictionaries of what evaluation needs: `loadRes` writes into those it is given."""
    rows = results if isinstance(results, list) else _read_json(results)
    name = "results" if isinstance(results, list) else str(results)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= RESULT_FIELDS for row in rows):
        raise InputError(f"{name}: not COCO results, a list of objects with {', '.join(sorted(RESULT_FIELDS))}")
    for number, row in enumerate(rows):
        ids = _is_id(row["image_id"]) and _is_id(row["category_id"])
        if not (ids and _is_box(row["bbox"]) and is_number(row["score"])):
            raise InputError(
                f"{name}: entry {number} has no ids, four finite numbers as bbox and a finite score: {short(row)}"
            )
    return [{field: row[field] for field in RESULT_FIELDS} for row in rows]


def ground_truth(annotations: Annotations) -> COCO:
    """Annotations as pycocotools' COCO, with what pycocotools takes for granted made sure of.

    They are numbered from 1, because pycocotools reads a match with annotation id 0 as no match. A missing
    `iscrowd` is 0, a missing `area` is width times height, a category without a name is called by its id.
    Categories of one name get their ids appended. Annotations without a box of four finite numbers, with an `iscrowd`
    that is no number, or of images or categories that are not listed, are left out. All others count, as they would
    by hand.
    """
    data = annotations if isinstance(annotations, dict) else _read_json(annotations)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in COCO_KEYS):
        raise InputError(f"{_name(annotations)}: not COCO annotations; they need the lists {', '.join(COCO_KEYS)}")
    for key in ("images", "categories"):
        if not all(isinstance(entry, dict) and _is_id(entry.get("id")) for entry in data[key]):
            raise InputError(
                f"{_name(annotations)}: an entry of `{key}` has no id; `focal-tutorial inspect` lists such"
            )
        if len({type(entry["id"]) for entry in data[key]}) > 1:  # pycocotools sorts them
            raise InputError(f"{_name(annotations)}: the ids of `{key}` are numbers and texts; make them one kind")
    images = {image["id"] for image in data["images"]}
    categories = _distinct_names(data["categories"])
    usable: list[dict[str, Any]] = []
    for a in data["annotations"]:
        if not (isinstance(a, dict) and _is_box(a.get("bbox")) and isinstance(a.get("iscrowd") or 0, int)):
            continue
        ids = a.get("image_id"), a.get("category_id")
        if all(map(_is_id, ids)) and ids[0] in images and ids[1] in categories:
            area = a["area"] if is_number(a.get("area")) else a["bbox"][2] * a["bbox"][3]
            usable.append({**a, "id": len(usable) + 1, "area": area, "iscrowd": int(bool(a.get("iscrowd")))})
    named = [{**category, "name": categories[category["id"]]} for category in data["categories"]]
    return _index({**data, "annotations": usable, "categories": named})


def check_classes(model: nn.Module, dataset: DetectionDataset) -> None:
    """Raise `InputError` unless the model's classes are the dataset's, in the same order."""
    where, names = dataset.annotation_file or "the dataset", list(dataset.class_names)
    own = getattr(model, "class_names", None)
    if model.num_classes != len(names):
        known = f" ({_some(own)})" if own else ""
        raise InputError(
            f"the model has {model.num_classes} classes{known}, but {where} has {len(names)} ({_some(names)}); "
            "use the annotations of the data it was trained for, or train a model for these classes"
        )
    if own is not None and list(own) != names:
        raise InputError(
            f"the model was trained for the classes {_some(own)}, but {where} has {_some(names)}; "
            "names and order (by category id) must agree"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _distinct_names(categories: list[dict[str, Any]]) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for category in categories:
        name = category_name(category)
        if category["id"] not in names:  # per-class results are keyed by name
            names[category["id"]] = f"{name} ({category['id']})" if name in names.values() else name
    return names


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or is_int(value)


def _is_box(box: Any) -> bool:
    return isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box))


def _name(annotations: Annotations) -> str:
    return "the annotations" if isinstance(annotations, dict) else str(annotations)


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _read_json(path: str | PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); is the file complete?") from error


def _class_names(coco_eval: COCOeval) -> list[str]:
    return [coco_eval.cocoGt.cats[category]["name"] for category in coco_eval.params.catIds]  # by rising id


def _mean(values: NDArray[np.float64]) -> float | None:
    defined = values[values > -1]  # pycocotools writes −1 where there are no boxes
    return float(defined.mean()) if defined.size else None
