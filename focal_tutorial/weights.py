"""Weights in and out: torchvision's RetinaNet, this package's checkpoints, and another number of classes."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn as torchvision_retinanet

from focal_tutorial.backbone import offline_hint
from focal_tutorial.errors import InputError

Weights = Union[str, "os.PathLike[str]", Mapping[str, Tensor], "Loaded"]

# The COCO_V1 weights were trained with an epsilon of 0 in the frozen batch norm, and torchvision sets it after loading.
COCO_V1_FILE = "retinanet_resnet50_fpn_coco"

# (torchvision's name, ours) of everything that differs.
RENAMED = (
    ("head.classification_head.cls_logits.", "head.classification.predict."),
    ("head.regression_head.bbox_reg.", "head.regression.predict."),
    ("head.classification_head.", "head.classification."),
    ("head.regression_head.", "head.regression."),
)

# What torch.load and zipfile raise for files that are damaged: anything that reading nonsense can lead to.
BROKEN = (RuntimeError, EOFError, ValueError, LookupError, struct.error, AttributeError, TypeError, ArithmeticError,
          zipfile.BadZipFile, zlib.error)  # fmt: skip


@dataclass
class Loaded:
    """A state dict in this package's names, and what it says about the model it fits."""

    state: dict[str, Tensor]
    from_torchvision: bool
    norm: str
    from_coco: bool = False  # known to be torchvision's COCO_V1

    @property
    def eps(self) -> float:
        """Of the frozen batch norm that the weights were trained with."""
        return 0.0 if self.from_coco else 1e-5

    @property
    def num_classes(self) -> int:
        """K, from the last class layer and the number of anchors, which the box layer tells."""
        anchors = len(self.state["head.regression.predict.bias"]) // 4
        return len(self.state["head.classification.predict.bias"]) // anchors


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's `retinanet_resnet50_fpn` state dict, of any version, in this package's names."""
    renamed = {}
    for name, value in state.items():
        # Files from before torchvision 0.14 number pyramid blocks and head convolutions without the inner ".0".
        name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.(weight|bias)$", r"\1.\2.0.\3", name)
        name = re.sub(r"_head\.conv\.(\d)\.(weight|bias)$", lambda m: f"_head.conv.{int(m[1]) // 2}.0.{m[2]}", name)
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This package's ResNet-50 state dict in torchvision's names: `load_state_dict` there takes it."""
    renamed = {}
    for name, value in state.items():
        for theirs, ours in RENAMED:
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def read_weights(weights: Weights, name: str) -> Loaded:
    """Read a weight name, file or state dict.

    Args:
        weights: "COCO_V1", a file (of `torch.save`; this package's checkpoints too), or a state dict; what has been
            read already comes back as it is.
        name: the backbone, for the message.

    Raises:
        InputError: where it cannot be fetched or read, or is not a RetinaNet's.
    """
    if isinstance(weights, Loaded):
        return weights
    coco = weights == "COCO_V1"
    if coco:
        if name != "resnet50":
            raise InputError(f"weights='COCO_V1' exist for resnet50 only, not for {name}; use weights_backbone instead")
        try:
            state: Mapping[str, Tensor] = torchvision_retinanet(weights="COCO_V1", progress=True).state_dict()
        except (OSError, RuntimeError) as error:
            raise offline_hint("weights='COCO_V1'", error) from error
    elif isinstance(weights, (str, os.PathLike)):
        state = _read_file(Path(weights))
        coco = Path(weights).name.startswith(COCO_V1_FILE)
    else:
        state = weights
    theirs = any(key.startswith("head.classification_head.") for key in state)
    ours = from_torchvision(state) if theirs else dict(state)
    if "head.classification.predict.bias" not in ours or "head.regression.predict.bias" not in ours:
        what = "the file" if isinstance(weights, (str, os.PathLike)) else "the state dict"
        raise InputError(
            f"{what} given as weights is not a RetinaNet's (no class and box layers in it): {_shorten(weights)}"
        )
    norm = "batch" if any(key.endswith("num_batches_tracked") for key in ours) else "frozen"
    return Loaded(ours, theirs, norm, coco)


def _shorten(weights: str | os.PathLike[str] | Mapping[str, Tensor]) -> str:
    return str(weights) if isinstance(weights, (str, os.PathLike)) else f"keys {sorted(weights)[:3]} …"


def check_sums(path: str | os.PathLike[str]) -> None:
    """Compare each part of a file of `torch.save` with its checksum, which `torch.load` does not look at.

    A file in torch's format of before 1.6 has none, and passes.

    Raises:
        InputError: a part is not what was written.
        OSError: the file cannot be read. (And one of `BROKEN`, where its table of contents is.)
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise InputError(f"{path}: damaged, {damaged} in it is not what was written; copy it again, or take another")


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"weights: no such file and no known name: {path} (known: 'COCO_V1')")
    try:
        check_sums(path)
        with torch.serialization.safe_globals([Namespace]):  # torchvision's scripts save their arguments, too
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to switch this protection off
        raise InputError(
            f"{path} is refused as weights: it holds more than tensors and plain values, or is no file of torch.save; "
            "save model.state_dict()"
        ) from error
    except InputError:
        raise
    except (*BROKEN, OSError) as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as weights ({first}); a file of torch.save with tensors only is wanted"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        # A checkpoint of this package (of last.pt the averaged weights, as in best.pt), or of torchvision's scripts.
        content = content["ema"] if isinstance(content.get("ema"), Mapping) else content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state dict (names to tensors); save model.state_dict()")
    return content


def fill(model: nn.Module, loaded: Loaded, num_classes: int) -> None:
    """Load weights into `model` of `num_classes`; its last class layer stays as it is where that number differs.

    Raises:
        InputError: where a layer is missing, left over, or of another shape, naming the first few.
    """
    own = model.state_dict()
    state = dict(loaded.state)
    last = [key for key in state if key.startswith("head.classification.predict.")]
    if loaded.num_classes != num_classes:
        state.update({key: own[key] for key in last})
    counters = {key for key in set(own) ^ set(state) if key.endswith("num_batches_tracked")}
    wrong = sorted(k for k in set(own) & set(state) if own[k].shape != state[k].shape)
    if wrong or (set(own) ^ set(state)) - counters:
        odd = wrong or sorted((set(own) ^ set(state)) - counters)
        raise InputError(f"the weights do not fit this model: {len(odd)} tensors differ, such as {odd[:3]}")
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
