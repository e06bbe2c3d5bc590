"""Checkpoints: written to a temporary file and renamed, so that the file of the name is always a whole one.

`last.pt` holds all that a run needs to go on; `best.pt` what a model needs to be used. Both are read with
`weights_only=True`, which builds tensors and plain containers and runs no code from the file.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch

from focal_tutorial.errors import InputError
from focal_tutorial.retinanet import RetinaNet, build_model
from focal_tutorial.weights import BROKEN, check_sums


def save_checkpoint(path: str | PathLike[str], state: dict[str, Any]) -> None:
    """`torch.save` that replaces `path` in one step: a crash leaves the old file or the new one."""
    write_atomically(path, lambda file: torch.save(state, file))


def write_json(path: str | PathLike[str], value: Any) -> None:
    """Indented JSON in one step, without NaN (which is not JSON)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_atomically(path: str | PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` on a temporary file beside `path`, bring it to the disk, and rename it to `path`.

    Raises InputError if the folder cannot be written or the disk is full; `path` is then as it was.
    """
    path = Path(path)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide the file from the group
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        raise InputError(f"{path}: cannot be written ({error}); check the free space and permissions") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_checkpoint(path: str | PathLike[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """The dictionary in a checkpoint of this package. Raises `InputError` if missing or broken."""
    try:
        check_sums(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, since it holds more than tensors and plain values (or is no checkpoint); use "
            "a checkpoint written by focal-tutorial train"
        ) from error
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(
            f"{path}: broken or no checkpoint ({type(error).__name__}); "
            "is the copy complete? use best.pt or last.pt of a run folder"
        ) from error
    if not isinstance(state, dict) or not {"model", "model_config", "class_names"} <= state.keys():
        raise InputError(
            f"{path}: not a checkpoint of focal-tutorial train; for a plain state dict build the model with weights="
        )
    return state


def load_checkpoint(path: str | PathLike[str], device: str | torch.device = "cpu") -> RetinaNet:
    """The model of a run's `best.pt` or `last.pt` in eval mode, with its `class_names`."""
    state = read_checkpoint(path)
    try:
        config = {k: v for k, v in state["model_config"].items() if k not in ("weights", "weights_backbone")}
        model = build_model(config)  # without a look at other files, or at the network
        model.load_state_dict(state["ema"] if state.get("ema") is not None else state["model"])
        model.class_names = None if state["class_names"] is None else [str(name) for name in state["class_names"]]
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise InputError(
            f"{path}: its model configuration and weights do not fit this version; it was written by another "
            f"version of the package ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error
    return model.to(device).eval()
