"""What a run says while it trains: a progress bar, lines, log.csv, TensorBoard; and the watch on its loss."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from focal_tutorial.checkpoint import write_atomically
from focal_tutorial.distributed import gather_lists, rank, share, sum_over_ranks, world_size
from focal_tutorial.errors import InputError

COLUMNS = ("step", "epoch", "lr", "loss", "classification", "bbox_regression", "images_per_second", "AP", "AP50")
LOSSES = ("classification", "bbox_regression")


class LossWatch:
    """Collects the losses of steps where they are and fetches them together, so that no step waits for the device."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[int], Tensor]] = []

    def add(self, step: int, image_ids: list[int], losses: Tensor) -> None:
        """Note the two losses, shape (2,), of a step on these images."""
        self._pending.append((step, image_ids, losses))

    def fetch(self) -> dict[str, float]:
        """Mean of each loss over the steps since the last call, and over the processes.

        Raises:
            InputError: if one is not finite; names the first such step and its images.
        """
        if not self._pending:
            return {}
        mine = torch.stack([losses for _, _, losses in self._pending])  # (steps, 2)
        everyone = sum_over_ranks(mine.clone()) / world_size()
        bad = (~everyone.isfinite()).any(1).nonzero()
        if len(bad):
            self._stop(int(bad[0]), mine.cpu(), everyone.cpu())
        self._pending.clear()
        values = dict(zip(LOSSES, everyone.mean(0).tolist(), strict=True))
        return {"loss": sum(values.values()), **values}

    def _stop(self, index: int, mine: Tensor, everyone: Tensor) -> None:
        step, image_ids, _ = self._pending[index]
        bad_ids = share(gather_lists([] if mine[index].isfinite().all() else image_ids))
        parts = ", ".join(f"{name} {value:g}" for name, value in zip(LOSSES, everyone[index].tolist(), strict=True))
        raise InputError(
            f"the loss is not finite at step {step} ({parts}), on the images with id {', '.join(map(str, bad_ids))}. "
            "Look at those images and their boxes; else try a lower lr, more warmup_steps, a smaller clip_grad, or amp "
            "bf16 or none instead of fp16. A last.pt is from before"
        )


class RunLog:
    """log.csv, TensorBoard and the progress bar of one run. Only rank 0's writes and shows."""

    def __init__(self, folder: Path, total_steps: int, step: int, *, progress: bool, tensorboard: bool) -> None:
        self.active, self.progress = rank() == 0, progress and rank() == 0
        self.bar = tqdm(total=total_steps, initial=step, unit="step", disable=None if self.progress else True)
        self._start, self._start_step = time.perf_counter(), step
        self._writer = _tensorboard(folder) if tensorboard and self.active else None
        self._path = folder / "log.csv"
        if self.active:
            keep_rows(self._path, step)

    def say(self, text: str) -> None:
        """A line for the user, above the bar."""
        if self.progress:
            tqdm.write(text)

    def losses(self, step: int, epoch: int, lr: float, losses: dict[str, float], images_per_step: int) -> None:
        """The mean losses of the steps up to `step`: a row, the bar's text, TensorBoard."""
        now, steps = time.perf_counter(), step - self._start_step
        speed = images_per_step * steps / max(now - self._start, 1e-9)
        self._start, self._start_step = now, step
        self._row({"step": step, "epoch": epoch, "lr": lr, **losses, "images_per_second": speed})
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)

    def metrics(self, step: int, epoch: int, metrics: dict[str, Any]) -> None:
        """AP and AP50 of an evaluation after `step`: a row, a line, TensorBoard."""
        row = {name: metrics[name] for name in ("AP", "AP50")}
        self._row({"step": step, "epoch": epoch, **row})
        self._start, self._start_step = time.perf_counter(), step  # the evaluation's time is not the training's
        self.say(f"step {step}: " + ", ".join(f"{name} {percent(value)}" for name, value in row.items()))

    def _row(self, values: dict[str, Any]) -> None:
        if not self.active:
            return
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:  # each time: killed runs keep their rows
                csv.DictWriter(file, COLUMNS).writerow({name: _text(value) for name, value in values.items()})
        except OSError as error:
            raise InputError(
                f"{self._path}: cannot be written ({error.strerror}); check the free space and permissions, and resume"
            ) from error
        if self._writer is not None:
            for name in set(values) - {"step"}:
                if values[name] is not None:
                    self._writer.add_scalar(name, values[name], values["step"])

    def close(self) -> None:
        """End bar and TensorBoard."""
        self.bar.close()
        if self._writer is not None:
            self._writer.close()


def keep_rows(path: Path, step: int) -> None:
    """Start log.csv, or keep its whole rows up to `step`: what came after the checkpoint is done again."""
    rows: list[dict[str, str]] = []
    if step > 0 and path.exists():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            whole = (row for row in csv.DictReader(line.replace("\0", "") for line in file) if None not in row.values())
            rows = [row for row in whole if row.get("step", "").isdigit() and int(row["step"]) <= step]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode("utf-8")))


def percent(value: float | None) -> str:
    """A fraction as COCO's tables print it: 36.4; "undefined" for None."""
    return "undefined" if value is None else f"{100 * value:.1f}"


def _text(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard is not installed: pip install focal-tutorial[tensorboard]") from error
    return SummaryWriter(folder)
