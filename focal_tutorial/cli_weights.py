"""`focal-tutorial convert-weights`: torchvision's weights for `evaluate` and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_weights_command(
    weights: Annotated[str, typer.Argument(help="COCO_V1 (downloads), or a state dict file of torchvision's model.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write.", metavar="OUT.pt")],
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO JSON whose category ids are the weights' columns; else COCO's 80 categories."),
    ] = None,
) -> None:
    """Make torchvision's retinanet_resnet50_fpn weights a checkpoint: evaluate and predict take it."""
    from focal_tutorial.convert import convert_weights

    model = convert_weights(weights, out, annotations)
    names = model.class_names or []
    typer.echo(f"written: {out}; {len(names)} classes: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
