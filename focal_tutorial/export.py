"""The detector without its Python: `torch.export` programs (.pt2) and ONNX files that compute `model(images)`.

The exported graph holds everything from images in [0, 1] to detections in those images' pixels: normalisation,
resizing, padding, the network, decoding and NMS. Three things differ from eager code, since a graph has static shapes:
the images have one size, fixed at export; the detections come as tensors of a fixed length with their counts; and
nothing checks the pixel values.
"""

from __future__ import annotations

import copy
import io
import json
import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from focal_tutorial import __version__
from focal_tutorial._suppress import NOTHING, onnx_suppress, suppress_batch
from focal_tutorial.backbone import FrozenNorm
from focal_tutorial.boxes import clip_boxes, decode_boxes
from focal_tutorial.checkpoint import write_atomically
from focal_tutorial.errors import InputError
from focal_tutorial.preprocess import Size
from focal_tutorial.retinanet import RetinaNet

RAW_OUTPUTS = ("logits", "deltas", "anchors")
OUTPUTS = ("boxes", "scores", "labels", "counts")
MOST_IMAGES = 4096  # torch.export of torch 2.6 wants a bound
OPSET = 18  # the first with an antialiased Resize


class ExportedDetector(nn.Module):
    """A RetinaNet for images of one size, with static shapes throughout: what is traced.

    Args:
        model: to copy; the copy is on the CPU, in float32 and eval mode.
        size: `(height, width)` of the images that come in.
        raw: stop after the heads.
        onnx: suppress by the operator that ONNX has, instead of torchvision's.
    """

    every_anchor: Tensor  # not "anchors", which is the name of an output

    def __init__(self, model: RetinaNet, size: Size, *, raw: bool = False, onnx: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        _fold_frozen_norms(self.model.backbone.body)
        preprocess = self.model.preprocess
        self.size, self.raw, self.onnx = size, raw, onnx
        self.resized = preprocess.resized(size)
        self.padded = preprocess.canvas or preprocess.padded([self.resized])
        levels = self.model.anchors(self.padded, "cpu")
        self.per_level = [len(level) for level in levels]
        self.register_buffer("every_anchor", torch.cat(levels))  # (R, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images `(N, 3, *size)` in [0, 1] → `RAW_OUTPUTS` or `OUTPUTS`; see `export_program`."""
        logits, deltas = self.model.network(self.prepare(images))  # (N, R, K), (N, R, 4)
        if self.raw:
            return logits, deltas, self.every_anchor.clone()  # a graph's output may not be its constant
        return self.detect(logits, deltas)

    def prepare(self, images: Tensor) -> Tensor:
        """`Preprocess` for images of one size: normalised, resized, padded with 0 on the right and below."""
        preprocess = self.model.preprocess
        x = preprocess.normalise(images)
        if self.resized != self.size:
            how: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": preprocess.antialias}
            x = F.interpolate(x, size=self.resized, **how)
        right, below = self.padded[1] - self.resized[1], self.padded[0] - self.resized[0]
        return F.pad(x, (0, right, 0, below)) if right or below else x  # (N, 3, *padded)

    def detect(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        """`detect_image` for a batch and with static shapes: `OUTPUTS` from logits `(N, R, K)`, deltas `(N, R, 4)`.

        The top k of a level come first and the threshold after, which leaves the same candidates in the same order.
        """
        o, classes = self.model.options, logits.shape[2]
        best, index = self._top_candidates(logits)  # (N, C) each; C = sum of the levels' k
        rows, labels = index // classes, index % classes
        limit = math.log(o.score_threshold / (1 - o.score_threshold)) if o.score_threshold > 0 else -math.inf
        scores = best.sigmoid()  # (N, C)
        # onnxruntime's σ has an absolute error of 3e-8, which would make small scores equal; eager ranks by σ
        ranks = torch.where(best > limit, best if self.onnx else scores, NOTHING)
        boxes = decode_boxes(_take(deltas, rows), self.every_anchor[rows])
        boxes = clip_boxes(boxes, self.resized)  # (N, C, 4)
        if self.onnx:
            limits: tuple[Any, ...] = (classes, o.detections_per_image, o.nms_iou)
            kept = torch.ops.focal_tutorial.suppress_batch(boxes, ranks, labels, *limits)
        else:
            kept = suppress_batch(boxes, ranks, labels, classes, o.detections_per_image, o.nms_iou)
        found, kept = kept >= 0, kept.clamp(min=0)  # (N, D)
        height, width = self.size[0] / self.resized[0], self.size[1] / self.resized[1]
        back = boxes.new_tensor([width, height, width, height])
        return (
            torch.where(found[..., None], _take(boxes, kept) * back, 0.0),  # (N, D, 4)
            torch.where(found, scores.gather(1, kept), 0.0),  # (N, D)
            torch.where(found, labels.gather(1, kept), -1),  # (N, D)
            found.sum(1),  # (N,)
        )

    def _top_candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the best (anchor, class) pairs of each level, and where they lie in an image's R·K: `(N, C)`."""
        best, index, start = [], [], 0
        for level in logits.split(self.per_level, dim=1):  # (N, R_l, K)
            flat = level.flatten(1)
            values, where = flat.topk(min(self.model.options.topk_per_level, flat.shape[1]), dim=1)
            best.append(values)
            index.append(where + start)
            start += flat.shape[1]
        return torch.cat(best, dim=1), torch.cat(index, dim=1)


def _fold_frozen_norms(body: nn.Module) -> None:
    """Make every frozen norm of a ResNet part of the weights and bias of the convolution before it, in place."""
    for parent in list(body.modules()):
        for (name, conv), (after, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenNorm):
                scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C,)
                sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
                plain = nn.Conv2d(*sizes, bias=True).requires_grad_(False)  # type: ignore[arg-type]
                plain.weight.copy_(conv.weight * scale[:, None, None, None])
                plain.bias.copy_(norm.bias - norm.running_mean * scale)  # type: ignore[union-attr]
                setattr(parent, name, plain)
                setattr(parent, after, nn.Identity())


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """`rows` `(N, R, 4)` at `index` `(N, C)`: `(N, C, 4)`."""
    return rows.gather(1, index[..., None].expand(-1, -1, 4))


def export_program(
    model: RetinaNet, size: Size | None = None, *, batch: int | None = None, raw: bool = False
) -> ExportedProgram:
    """The model as a `torch.export` program: `program.module()(images)` computes `model(images)` of eval mode.

    Args:
        model: any RetinaNet of this package; it is copied and stays as it is. The program runs on the CPU in float32.
        size: `(height, width)` of the images; by default the model's canvas.
        batch: images at a time; `None` for any number up to 4,096.
        raw: stop after the heads.

    Returns:
        The program, from images `(N, 3, H, W)`, RGB float32 in [0, 1], to a tuple. With D at most
        `detections_per_image`: boxes `(N, D, 4)` xyxy in pixels of the images, scores `(N, D)`, labels `(N, D)`, and
        counts `(N,)`; each image's first `count` rows are its detections, best first, the others 0 with label −1. With
        `raw`: class logits `(N, R, K)`, box deltas `(N, R, 4)`, anchors `(R, 4)` in pixels of the network's input;
        `describe` tells how these lie in the images.

    Raises:
        ValueError: for a size or batch that is none, or no size where the model has no canvas.
    """
    return _trace(ExportedDetector(model, _checked_size(model, size), raw=raw), batch)


def _trace(detector: ExportedDetector, batch: int | None) -> ExportedProgram:
    if batch is not None and batch < 1:
        raise ValueError(f"batch: at least 1 wanted, or None for any; got {batch}")
    example = torch.zeros(batch or 2, 3, *detector.size)  # of one image, N would be taken for a constant 1
    dynamic = None if batch else ({0: Dim("batch", min=1, max=MOST_IMAGES)},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's own, at its NMS
        return torch.export.export(detector, (example,), dynamic_shapes=dynamic, strict=False)


def _checked_size(model: RetinaNet, size: Size | None) -> Size:
    size = size or model.preprocess.canvas
    if size is None:
        raise ValueError("size: (height, width) wanted, since this model takes images of any size and has no canvas")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: (height, width) in pixels wanted, got {size}")
    return int(size[0]), int(size[1])


def describe(model: RetinaNet, size: Size | None = None, *, raw: bool = False) -> dict[str, Any]:
    """What a user of the exported file needs to know and the tensors do not tell; it stands in the file, as JSON.

    `size`: (height, width) of the images. They are resized to `resized` and padded on the right and below to
    `network_size`; a box in pixels of the network's input is multiplied by size / resized to be one in the image.
    """
    size = _checked_size(model, size)
    resized = model.preprocess.resized(size)
    return {
        "package": f"focal_tutorial {__version__}",
        "input": "images (N, 3, H, W), RGB, float32 in [0, 1]; mean and std are applied inside",
        "outputs": list(RAW_OUTPUTS if raw else OUTPUTS),
        "class_names": model.class_names or [str(label) for label in range(model.num_classes)],
        "size": list(size),
        "resized": list(resized),
        "network_size": list(model.preprocess.canvas or model.preprocess.padded([resized])),
        **model.options.pick("mean", "std", "score_threshold", "topk_per_level", "nms_iou", "detections_per_image"),
    }


def export_pt2(
    model: RetinaNet,
    path: str | PathLike[str],
    size: Size | None = None,
    *,
    batch: int | None = None,
    raw: bool = False,
) -> None:
    """Write `export_program` as a .pt2 file for `torch.export.load`, with `describe` in it as "describe.json".

    Arguments and errors as `export_program`; `InputError` where the file cannot be written.
    """
    facts = json.dumps(describe(model, size, raw=raw), ensure_ascii=False)
    buffer = io.BytesIO()
    torch.export.save(export_program(model, size, batch=batch, raw=raw), buffer, extra_files={"describe.json": facts})
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def export_onnx(
    model: RetinaNet,
    path: str | PathLike[str],
    size: Size | None = None,
    *,
    batch: int | None = None,
    raw: bool = False,
) -> None:
    """Write the model as an ONNX file (opset 18, one file with its weights), with `describe` in its metadata.

    Input and outputs as `export_program`, by the names "images" and `OUTPUTS` or `RAW_OUTPUTS`.

    Raises:
        InputError: where the packages onnx and onnxscript are missing, or the file cannot be written.
        ValueError: as `export_program`.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise InputError(f"ONNX needs {' and '.join(missing)}: pip install focal-tutorial[export]")
    detector = ExportedDetector(model, _checked_size(model, size), raw=raw, onnx=True)
    proto = _to_onnx(_trace(detector, batch), RAW_OUTPUTS if raw else OUTPUTS)
    for key, value in describe(model, size, raw=raw).items():
        proto.metadata_props.add(
            key=key, value=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
    write_atomically(path, lambda file: file.write(proto.SerializeToString()))


def _to_onnx(program: ExportedProgram, outputs: Sequence[str], inputs: Sequence[str] = ("images",)) -> Any:
    """The ONNX model of a program that `ExportedDetector(onnx=True)` was traced to."""
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=list(inputs),
        output_names=list(outputs),
        custom_translation_table={torch.ops.focal_tutorial.suppress_batch.default: onnx_suppress},
    )
    proto = exported.model_proto  # type: ignore[union-attr]
    _name_batch(proto)
    return proto


def _name_batch(proto: Any) -> None:
    """Give a first dimension that is open its name, which torch calls s34 or so, or forgets (torch 2.6)."""
    graph = proto.graph
    if not graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        return
    del graph.value_info[:]  # shapes within the graph, which every runtime finds by itself; torch 2.6 has wrong ones
    for value in (*graph.input, *graph.output):
        if value.name != "anchors":
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def split_detections(boxes: Any, scores: Any, labels: Any, counts: Any) -> list[dict[str, Tensor]]:
    """The tensors or arrays of an exported detector as what `model(images)` returns: one dictionary an image."""
    columns = [torch.as_tensor(column) for column in (boxes, scores, labels)]
    return [
        dict(zip(OUTPUTS, (column[image, : int(count)] for column in columns), strict=False))
        for image, count in enumerate(counts)
    ]
