"""`focal-tutorial export`: a checkpoint as an ONNX file or a `torch.export` program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focal_tutorial.cli_options import parse_size
from focal_tutorial.errors import InputError


def export_command(
    checkpoint: Annotated[Path, typer.Argument(help="best.pt or last.pt of a run folder.")],
    out: Annotated[Path, typer.Argument(help="File to write; its ending chooses.", metavar="OUT.onnx|OUT.pt2")],
    size: Annotated[
        str | None,
        typer.Option(help="The images' size in pixels, 512 or 384x512 (height x width). Default: the model's canvas."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images at a time. Default: any number.", min=1)] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Class logits, box deltas and anchors; no decoding, no NMS.")] = (
        False
    ),
) -> None:
    """Write a model as one file that runs without this package: ONNX, or torch.export's .pt2."""
    kind = out.suffix.lower()
    if kind not in (".onnx", ".pt2"):
        raise InputError(f"{out}: a name ending in .onnx or .pt2 wanted, to choose between ONNX and torch.export")
    if not out.parent.is_dir():  # before the minutes that a large model takes
        raise InputError(f"{out.parent}: no such folder; make it first")
    images = parse_size(size)
    from focal_tutorial.checkpoint import load_checkpoint
    from focal_tutorial.export import describe, export_onnx, export_pt2

    model = load_checkpoint(checkpoint)
    if images is None and model.preprocess.canvas is None:
        raise InputError(f"--size: wanted, as 480x640, since {checkpoint} takes images of any size")
    (export_onnx if kind == ".onnx" else export_pt2)(model, out, images, batch=batch, raw=raw)
    facts = describe(model, images, raw=raw)
    height, width = facts["size"]
    typer.echo(f"written: {out}, {out.stat().st_size / 1e6:.1f} MB")
    typer.echo(f"input:   images ({batch or 'N'}, 3, {height}, {width}), RGB, float32 in [0, 1]")
    typer.echo(f"outputs: {', '.join(facts['outputs'])}")
