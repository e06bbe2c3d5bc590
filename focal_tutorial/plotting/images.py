"""Boxes on images: annotations, detections, and which of them are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torchvision.ops import box_iou

from focal_tutorial.plotting.style import BOX_COLOURS, HIT, INK, MISSED, WRONG, save_figure


def as_picture(image: Any) -> np.ndarray:
    """An image as `(H, W, 3)` uint8.

    Args:
        image: `(3, H, W)` or `(1, H, W)` tensor or `(H, W)` or `(H, W, 3)` array, uint8 or float in [0, 1]; or a PIL
            image.

    Raises:
        ValueError: for any other shape.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"image: a (3, H, W) tensor wanted, got {tuple(image.shape)}")
        image = image.permute(1, 2, 0).float().numpy() if image.is_floating_point() else image.permute(1, 2, 0).numpy()
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"image: (H, W, 3) wanted, got {array.shape}")
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def as_array(values: Any, dtype: Any = None) -> np.ndarray:
    """A tensor, on any device, or anything else that NumPy takes, as an array."""
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype)


def _text_colour(background: str) -> str:
    red, green, blue = to_rgb(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _caption(ax: Axes, box: np.ndarray, text: str, colour: str, size: float, picture: tuple[int, int]) -> None:
    """`text` on a plate at the box's upper left corner: above the box, or inside it at the image's upper edge."""
    top = box[1] < 0.05 * picture[0]
    right = box[0] > 0.85 * picture[1]
    ax.annotate(
        text,
        (min(max(box[2 if right else 0], 0), picture[1] - 1), max(box[1], 0)),
        xytext=(0, -1.5 if top else 1.5),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top" if top else "bottom",
        fontsize=size,
        color=_text_colour(colour),
        bbox={"boxstyle": "square,pad=0.18", "facecolor": colour, "edgecolor": "none", "alpha": 0.9},
        annotation_clip=True,
        zorder=4,
    )


def draw_boxes(
    ax: Axes,
    image: Any | None,
    boxes: Any,
    labels: Any | None = None,
    *,
    names: Sequence[str] | None = None,
    scores: Any | None = None,
    colours: Sequence[str] | str | None = None,
    captions: Sequence[str] | None = None,
    linestyle: str = "-",
    linewidth: float = 1.6,
    fontsize: float = 7.5,
) -> str:
    """Draw `boxes` `(D, 4)` xyxy in pixels on `image`, and say what was drawn.

    Args:
        image: as `as_picture` takes it, or `None` to add boxes to what the axes show already.
        labels: `(D,)` integers: choose the colour, and the name where `names` are given.
        names: class names, one per label.
        scores: `(D,)` in [0, 1], written behind the name in per cent.
        colours: one for all, or one per class (per box where there are no labels).
        captions: texts to write in place of names and scores.
    """
    if image is not None:
        picture = as_picture(image)
        ax.imshow(picture, interpolation="nearest" if max(picture.shape) < 100 else "antialiased")
        ax.set_axis_off()
    height, width = (ax.get_ylim()[0] + 0.5, ax.get_xlim()[1] + 0.5)
    boxes = as_array(boxes).reshape(-1, 4)
    kinds = as_array(labels).astype(int) if labels is not None else None
    values = as_array(scores) if scores is not None else None
    palette = BOX_COLOURS if colours is None else [colours] if isinstance(colours, str) else list(colours)
    halo = [effects.Stroke(linewidth=linewidth + 1.6, foreground="#10181fb0"), effects.Normal()]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in np.argsort(-areas):  # small boxes last, on top
        colour = palette[(int(kinds[i]) if kinds is not None else int(i)) % len(palette)]
        x1, y1, x2, y2 = boxes[i]
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=linewidth)
        frame.set(linestyle=linestyle, path_effects=halo, zorder=3)
        ax.add_patch(frame)
        text = captions[i] if captions is not None else _name(kinds, names, values, int(i))
        if text and fontsize > 0:
            _caption(ax, boxes[i], text, colour, fontsize, (int(height), int(width)))
    return _what(boxes, kinds, names)


def _name(kinds: np.ndarray | None, names: Sequence[str] | None, scores: np.ndarray | None, i: int) -> str:
    parts = [names[kinds[i]]] if names is not None and kinds is not None else []
    if scores is not None:
        parts.append(f"{100 * scores[i]:.0f} %")
    return " ".join(parts)


def _what(boxes: np.ndarray, kinds: np.ndarray | None, names: Sequence[str] | None) -> str:
    if kinds is None or names is None or not len(boxes):
        return f"Image with {len(boxes)} boxes."
    counts = [f"{int((kinds == k).sum())} {name}" for k, name in enumerate(names) if (kinds == k).any()]
    return f"Image with {len(boxes)} boxes: {', '.join(counts)}."


def judge_detections(
    truth: Mapping[str, Any], found: Mapping[str, Any], *, iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right, and which objects were found, as COCO counts them.

    Going down the scores, a detection takes the free object of its class that it overlaps most, if by IoU ≥ `iou`.

    Args:
        truth: `boxes` `(M, 4)` and `labels` `(M,)`.
        found: `boxes` `(D, 4)`, `labels` `(D,)`, `scores` `(D,)`.

    Returns:
        Boolean `(D,)` true positives, and boolean `(M,)` objects found.
    """
    boxes = torch.as_tensor(found["boxes"]).reshape(-1, 4).float()
    overlap = box_iou(boxes, torch.as_tensor(truth["boxes"]).reshape(-1, 4).float()).cpu().numpy()  # (D, M)
    same = as_array(found["labels"])[:, None] == as_array(truth["labels"])[None]
    overlap = np.where(same, overlap, 0.0)
    right, taken = np.zeros(overlap.shape[0], bool), np.zeros(overlap.shape[1], bool)
    for d in np.argsort(-as_array(found["scores"]), kind="stable"):
        free = np.where(taken, 0.0, overlap[d])
        if free.size and free.max() >= iou:
            right[d] = taken[free.argmax()] = True
    return right, taken


def show_detections(
    axes: Sequence[Axes],
    image: Any,
    truth: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.5,
    iou: float = 0.5,
    title: str = "",
) -> str:
    """One image on two axes: the ground truth, and the detections sorted into right, wrong and missed.

    Args:
        axes: two: ground truth, detections.
        image, truth, found: as `draw_boxes` and `judge_detections` take them.
        threshold: detections of a lower score are left out.
        iou: overlap that makes a detection right.
    """
    keep = as_array(found["scores"]) >= threshold
    found = {key: as_array(found[key])[keep] for key in ("boxes", "labels", "scores")}
    right, seen = judge_detections(truth, found, iou=iou)
    draw_boxes(axes[0], image, truth["boxes"], truth["labels"], names=names)
    axes[0].set_title(f"{title}: ground truth" if title else "ground truth", fontsize=9, color=INK, loc="left")
    labels = as_array(found["labels"])
    tags = [_name(labels, names, found["scores"], i) for i in range(len(labels))]
    draw_boxes(axes[1], image, found["boxes"][right], colours=HIT,
               captions=[t for t, ok in zip(tags, right, strict=True) if ok])  # fmt: skip
    draw_boxes(axes[1], None, found["boxes"][~right], colours=WRONG, linestyle="--",
               captions=[f"wrong: {t}" for t, ok in zip(tags, right, strict=True) if not ok])  # fmt: skip
    lost = as_array(truth["labels"])[~seen]
    draw_boxes(axes[1], None, as_array(truth["boxes"])[~seen], colours=MISSED, linestyle=":", linewidth=2.2,
               captions=[f"missed{': ' + names[k] if names else ''}" for k in lost])  # fmt: skip
    counts = f"{right.sum()} right, {(~right).sum()} wrong, {(~seen).sum()} missed"
    axes[1].set_title(f"detections: {counts}", fontsize=9, color=INK, loc="left")
    subject = f"Two views of {title or 'an image'}"
    return f"{subject}: {len(seen)} objects of the ground truth, and detections at score {threshold:g}: {counts}."


def save_picture(path: str | Path, image: Any, boxes: Any, labels: Any | None = None, **options: Any) -> str:
    """Write `image` with its boxes to `path`, at its own resolution or enlarged to 640 px; returns the alt text.

    Args:
        image, boxes, labels, options: as `draw_boxes` takes them; boxes in pixels of `image`.
    """
    picture = as_picture(image)
    height, width = picture.shape[:2]
    long = max(height, width)
    dpi = max(long, 640) / 6.4  # 6.4 inches: text and lines keep their share of a picture of any size
    figure = Figure(figsize=(6.4 * width / long, 6.4 * height / long))
    ax = figure.add_axes((0, 0, 1, 1))
    alt = draw_boxes(ax, picture, boxes, labels, **options)
    save_figure(figure, path, alt=alt, dpi=dpi)
    return alt
