"""What tests/test_train_ddp.py runs in every process: `ddp_worker.py train SETTINGS`, `ddp_worker.py parts FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from focal_tutorial import retinanet_tiny
from focal_tutorial.data.shapes import ShapesDataset
from focal_tutorial.distributed import first_of_machine_first, process_group, rank, require_same, world_size
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import detect, evaluate
from focal_tutorial.retinanet import RetinaNet
from focal_tutorial.train import Run, TrainConfig, train

IMAGES = 6  # of the global batch
BOXES = {  # of each image of the global batch: what a process gets of it is very unequal, or nothing at all
    "unequal": (1, 1, 1, 9, 9, 9),
    "empty": (3, 2, 1, 0, 0, 0),
    "nothing": (0, 0, 0, 0, 0, 0),
}
NORMALIZERS = ("foreground", "foreground_plus_one", "image")


def say(kind: str, **values: Any) -> None:
    """A line on stdout, in one piece, for several processes write there."""
    sys.stdout.write(f"{kind} {json.dumps({'rank': int(os.environ['RANK']), **values})}\n")


def model(**options: Any) -> RetinaNet:
    torch.manual_seed(0)
    body: dict[str, Any] = {"levels": (2, 3, 4), "widths": (8, 16, 16), "channels": 16, "head_depth": 1}
    return retinanet_tiny(3, canvas=(64, 64), **body, **options).train()


def batch(boxes: tuple[int, ...]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(boxes), 3, 64, 64), generator=generator, dtype=torch.uint8)
    targets = []
    for count in boxes:
        corner = 40 * torch.rand(count, 2, generator=generator)
        sides = 8 + 14 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(0, 3, (count,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + sides], dim=1), "labels": labels})
    return images, targets


def gradient(net: torch.nn.Module, images: torch.Tensor, targets: list[dict[str, Any]]) -> torch.Tensor:
    """Of the summed losses, all parameters in one row."""
    sum(net(images, targets).values()).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def gradients_agree() -> None:
    """Say how far the gradient of all processes together is from one process's on the whole batch."""
    mine = slice(rank() * IMAGES // world_size(), (rank() + 1) * IMAGES // world_size())
    for name, boxes in BOXES.items():
        images, targets = batch(boxes)
        for normalizer in NORMALIZERS:
            ours = gradient(DistributedDataParallel(model(normalizer=normalizer)), images[mine], targets[mine])
            with alone():
                wanted = gradient(model(normalizer=normalizer), images, targets)
            off = ((ours - wanted).norm() / wanted.norm()).item()
            say("gradient", case=f"{name}, {normalizer}", off=off, size=wanted.numel())


class alone:
    """Within it the package sees one process, as the reference has to be computed."""

    def __enter__(self) -> None:
        self.initialized = torch.distributed.is_initialized
        torch.distributed.is_initialized = lambda: False

    def __exit__(self, *error: object) -> None:
        torch.distributed.is_initialized = self.initialized


def evaluations_agree() -> None:
    """Say the metrics of all processes together and of one, and which images the detections are of."""
    net = model(score_threshold=0.0).eval()  # an untrained model is sure of nothing
    for count in (1, 2, 5):
        dataset = ShapesDataset(count, split="val", size=64, radius=(6.0, 12.0))
        together = evaluate(net, dataset, batch_size=2)
        found = detect(net, dataset, batch_size=2)
        with alone():
            single = evaluate(net, dataset, batch_size=2)
            wanted = detect(net, dataset, batch_size=2)
        ids = [sorted(row["image_id"] for row in rows) for rows in (found, wanted)]
        scores = [torch.tensor(sorted(row["score"] for row in rows)) for rows in (found, wanted)]
        equal = ids[0] == ids[1] and torch.allclose(scores[0], scores[1], atol=1e-5)
        values = {"same": together == single, "AR": single["AR100"], "rows": len(found), "wanted": len(wanted)}
        say("metrics", equal=equal, **values)


def refusals(folder: Path) -> None:
    """Say what every process answers where only one of them has something to object to."""

    def refused(name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except InputError as error:
            say("refused", name=name, message=str(error))

    refused("same", lambda: require_same({"images": 5 if rank() else 4}))
    settings = {"shapes": {"num_train": 12, "num_val": 2, "size": 64}, "steps": 1, "device": "cpu"}
    refused("used", lambda: train(TrainConfig(**settings, out=str(folder / "one")), progress=False))
    batch_size = 2 if rank() else 1
    other = TrainConfig(**settings, batch_size=batch_size, out=str(folder / "other"))
    refused("settings", lambda: train(other, progress=False))


def order(folder: Path) -> None:
    """The first process writes slowly, the others look for the file."""
    with first_of_machine_first():
        if rank() == 0:
            torch.save(torch.ones(1_000_000), folder / "weights.pt")
        say("order", found=(folder / "weights.pt").exists())


def parts(folder: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        gradients_agree()
        evaluations_agree()
        refusals(folder)
        order(folder)


def training(settings: dict[str, Any]) -> None:
    """One training; "poison" makes process 1's loss NaN at that step, "die" ends process 1 there, once."""
    poison, die = settings.pop("poison", None), settings.pop("die", None)
    losses = Run._losses
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

    def faulty(self: Run, images: Any, targets: Any) -> torch.Tensor:
        if die is not None and self.step == die and rank() == 1 and first:
            os._exit(7)
        found = losses(self, images, targets)
        return found * float("nan") if poison is not None and self.step == poison and rank() == 1 else found

    Run._losses = faulty
    say("start", restart=os.environ.get("TORCHELASTIC_RESTART_COUNT"))
    try:
        metrics = train(TrainConfig(**settings), progress=False)
    except InputError as error:
        sys.stdout.write(f"InputError: {error}\n")
        sys.exit(2)
    say("metrics", **{name: value for name, value in metrics.items() if name != "seconds"})


if __name__ == "__main__":
    if sys.argv[1] == "train":
        training(json.loads(sys.argv[2]))
    else:
        parts(Path(sys.argv[2]))
