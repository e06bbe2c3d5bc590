"""Training: data, model, the loop, checkpoints. `train(TrainConfig())` needs nothing and learns the synthetic shapes.

Under `torchrun` every process runs this same code on its share of each batch: DDP averages the gradients, the criterion
divides by the foreground of all processes, rank 0 writes the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from focal_tutorial.checkpoint import load_checkpoint, save_checkpoint, write_json
from focal_tutorial.data.dataset import DetectionDataset
from focal_tutorial.data.loader import Batch, make_loader
from focal_tutorial.distributed import (
    data_parallel,
    first_of_machine_first,
    process_group,
    rank,
    same_buffers,
    sum_over_ranks,
    world_size,
)
from focal_tutorial.errors import InputError
from focal_tutorial.evaluate import AMP_DTYPES, check_classes, evaluate
from focal_tutorial.optim import Accumulation, AveragedWeights, learning_rate, make_optimizer
from focal_tutorial.retinanet import RetinaNet
from focal_tutorial.stopping import StopRequest
from focal_tutorial.train_config import TrainConfig
from focal_tutorial.train_log import LossWatch, RunLog
from focal_tutorial.train_setup import (
    check_agreement,
    computing,
    describe,
    latest_folder,
    load_data,
    make_model,
    open_folder,
    pick_device,
    read_last,
    resume_or_start,
)

__all__ = ["TrainConfig", "load_checkpoint", "train"]


AfterStep = Callable[[int, RetinaNet], None]


def train(
    config: TrainConfig,
    *,
    model: RetinaNet | None = None,
    after_step: AfterStep | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a RetinaNet and return the validation metrics of its last weights, as `metrics.json` holds them.

    The run folder gets config.json, log.csv, last.pt (all that `resume` needs), best.pt (the weights of the evaluation
    with the highest AP, averaged where `config.ema` is on; what `load_checkpoint` wants) and metrics.json.

    Args:
        config: see `TrainConfig`. With `resume`, the run in `config.out` (else the latest in runs/) goes on to the same
            result.
        model: trained instead of the one that `config` describes, for losses and samplers that no configuration has.
        after_step: called with the number of steps done and the model after each, to look at the model as it learns.
        progress: show a bar and lines.

    Returns:
        What `evaluate` returns, where there is a validation set; "step", "loss" (the mean of the last rows of
        log.csv), "seconds" (of training, all calls together), "out", and "best": metrics and step of best.pt.

    Raises:
        InputError: for settings or data that cannot be used, and when the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the last finished step is saved.
    """
    stored = None
    if config.resume_or_start:
        config = dataclasses.replace(config)
        resume_or_start(config)
    if config.resume:
        config = dataclasses.replace(config, out=str(latest_folder(config)))
        stored = read_last(config)
        config = config.continued(stored["config"])
    with process_group(pick_device(config.device)) as device, computing(config):
        return Run(config, device, model, stored, after_step, progress).finish()


class Run:
    """One training run. All that changes in it follows from `step`, the number of updates done, and the weights."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        model: RetinaNet | None,
        stored: dict[str, Any] | None,
        after_step: AfterStep | None,
        progress: bool,
    ) -> None:
        self.device, self.after_step = device, after_step
        self.images_per_step = config.batch_size * config.accumulate * world_size()
        c, train_set, self.val_set = load_data(config, self.images_per_step)
        self.config, self.num_images = c, len(train_set)
        check_agreement(c, train_set, self.val_set, stored["step"] if stored else 0)
        self.loader = make_loader(
            train_set, c.batch_size, shuffle=True, seed=c.seed, workers=c.workers, drop_last=True,
            rank=rank(), world_size=world_size(), pin_memory=device.type == "cuda",
        )  # fmt: skip
        self.steps_per_epoch = len(self.loader) // c.accumulate
        if self.steps_per_epoch == 0:
            raise InputError(f"{len(train_set)} images make no step of {self.images_per_step}: accumulate less")
        self.total_steps = c.steps or (c.epochs or 1) * self.steps_per_epoch
        with first_of_machine_first():  # it may download pretrained weights
            model = model or make_model(c, len(train_set.class_names))
        self._set_up(model, train_set)
        self.step, self.seconds = 0, 0.0
        self.saved: int | None = None  # the step of last.pt
        self.last: dict[str, Any] = {}  # the latest metrics
        self.best: dict[str, Any] = {}  # those of best.pt
        if stored is not None:
            self._restore(stored)
        self.folder = open_folder(c)
        self.log = RunLog(self.folder, self.total_steps, self.step, progress=progress, tensorboard=c.tensorboard)
        self.watch = LossWatch()
        self.log.say(describe(c, train_set, self.val_set, self.total_steps, self.images_per_step, device))

    def _set_up(self, model: RetinaNet, train_set: DetectionDataset) -> None:
        """Model, averaged weights, optimiser, and what AMP, compilation and DDP put around them."""
        c = self.config
        self.model = model
        model.class_names = list(train_set.class_names)
        for dataset in filter(None, (train_set, self.val_set)):
            check_classes(model, dataset)  # now, not at the first evaluation
        model.to(self.device)
        if c.channels_last:
            model.to(memory_format=torch.channels_last)
        self.average = AveragedWeights(model, c.ema) if c.ema else None
        self.optimizer = make_optimizer(
            model, c.optimizer or "sgd", lr=c.lr or 0.0, momentum=c.momentum,
            weight_decay=c.weight_decay or 0.0, decay_norm_bias=c.decay_norm_bias,
        )  # fmt: skip
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=c.amp == "fp16")
        if c.compile:  # the network alone: matching and losses follow the boxes, whose number changes
            model.compile_network()
        self.parallel = data_parallel(model)

    def finish(self) -> dict[str, Any]:
        """Train from the current step to the last, evaluate, write the results and return them."""
        start = time.perf_counter() - self.seconds
        try:
            with StopRequest() as stop:
                for epoch in range(self.step // self.steps_per_epoch, -(-self.total_steps // self.steps_per_epoch)):
                    for batches in self._batches(epoch, stop):
                        self._train_step(batches)
                        self.step += 1
                        self.log.bar.update()
                        self.seconds = time.perf_counter() - start
                        self._after_step(epoch, stop)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that loads images died after step {self.step} (memory?); resume with fewer workers. "
                f"The last step that is saved: {self.saved if self.saved is not None else 'none'}"
            ) from error
        finally:
            self.log.close()
        results = {**self.last, "step": self.step, "seconds": round(self.seconds, 2), "best": self.best}
        if rank() == 0:
            write_json(self.folder / "metrics.json", results)
        return {**results, "out": str(self.folder)}

    def _batches(self, epoch: int, stop: StopRequest) -> Iterator[list[Batch]]:
        """The batches of each remaining step of the epoch, `accumulate` a step."""
        done = self.step - epoch * self.steps_per_epoch
        self.loader.set_epoch(epoch, done * self.config.accumulate)
        batches = iter(self.loader)
        for _ in range(min(self.steps_per_epoch - done, self.total_steps - self.step)):
            try:
                step = self._take(batches)
            except RuntimeError as error:
                if "DataLoader worker" in str(error) and world_size() == 1:  # the others would wait for this process
                    self._save_after_a_death(stop)
                raise
            if self.config.workers:
                stop.meet_deaths_between_steps()
            yield step

    def _take(self, batches: Iterator[Batch]) -> list[Batch]:
        try:
            return [next(batches) for _ in range(self.config.accumulate)]
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            if self.config.workers == 0:
                raise
            raise RuntimeError("DataLoader worker ended while it handed over a batch") from error

    def _train_step(self, batches: list[Batch]) -> None:
        """One update of the weights, on one batch or on `accumulate` of them."""
        c = self.config
        # Whatever draws random numbers in a step draws them from (seed, step), so that a resumed run draws the same.
        torch.manual_seed(c.seed + 1_000_003 * (self.step * world_size() + rank()))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        sums = Accumulation(c.accumulate, world_size())
        losses = torch.zeros(2, device=self.device)
        for i, (images, targets) in enumerate(batches):
            last = i == len(batches) - 1
            now = last or world_size() == 1  # DDP averages the gradients once, in the last backward pass
            with contextlib.nullcontext() if now else self.parallel.no_sync():  # type: ignore[operator]
                found = self._losses(images, targets)
                weight = sums.weight(self.model.criterion.last_foreground)
                self.scaler.scale((found[0] + found[1]) * weight).backward()
            losses += found.detach() * weight
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.scaler.unscale_(self.optimizer)
        if c.accumulate > 1:
            torch._foreach_mul_(gradients, torch.as_tensor(sums.scale(), device=self.device))
        if c.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), c.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, self.step)
        image_ids = [int(target["image_id"]) for _, targets in batches for target in targets]
        self.watch.add(self.step + 1, image_ids, losses * sums.scale())

    def _losses(self, images: Tensor | list[Tensor], targets: list[dict[str, Any]]) -> Tensor:
        """The two losses of a batch, shape (2,), on the device."""
        c = self.config
        if isinstance(images, Tensor):
            images = images.to(self.device, non_blocking=True)  # (N, 3, H, W) uint8
            if c.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
        dtype = AMP_DTYPES[c.amp]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            losses = self.parallel(images, targets)
        return torch.stack([losses["classification"], losses["bbox_regression"]])

    def _rate(self, step: int) -> float:
        c = self.config
        return learning_rate(
            step,
            self.total_steps,
            c.lr or 0.0,
            warmup_steps=c.warmup_steps,
            schedule=c.schedule,
            milestones=c.milestones,
        )

    def _after_step(self, epoch: int, stop: StopRequest) -> None:
        """Log, evaluate and save, where it is time to."""
        c = self.config
        if self.after_step is not None:
            self.after_step(self.step, self.model)
        done = self.step == self.total_steps
        look = done or self.step % c.log_every == 0
        if look:
            self._log_losses(epoch)
        evaluated = done or (c.eval_every > 0 and self.step % (c.eval_every * self.steps_per_epoch) == 0)
        if evaluated:
            self._evaluate(epoch)
        stopping = stop.asked
        if world_size() > 1:  # all must stop at one step, so they ask each other, when they fetch their losses anyway
            stopping = look and bool(sum_over_ranks(torch.tensor(float(stop.asked), device=self.device)))
        if stopping and not done:
            self._save_and_stop()
        if evaluated or self.step % c.save_every == 0:  # an evaluation is worth more than the time to save
            self._save()

    def _save_after_a_death(self, stop: StopRequest) -> None:
        """Between two steps, a loader's process dead: for want of memory, or by the SIGTERM of a job queue to all."""
        for _ in range(10):  # a SIGTERM may be on its way to this process, too
            if not stop.asked:
                time.sleep(0.1)
        if stop.asked:
            self._save_and_stop()
        self._save()

    def _save_and_stop(self) -> NoReturn:
        self._save()
        raise KeyboardInterrupt(
            f"stopped after step {self.step} of {self.total_steps} and saved; resume with out {self.folder}"
        )

    def _log_losses(self, epoch: int) -> None:
        losses = self.watch.fetch()
        if losses:
            self.last = {**self.last, "loss": losses["loss"]}
            self.log.losses(self.step, epoch, self._rate(self.step - 1), losses, self.images_per_step)

    def _evaluate(self, epoch: int) -> None:
        """Metrics of the averaged weights, and best.pt if their AP is the highest so far."""
        c = self.config
        model = self.average.model if self.average else self.model
        metrics: dict[str, Any] = {}
        if self.val_set is not None:
            same_buffers(model)
            metrics = evaluate(
                model, self.val_set, batch_size=c.batch_size, amp=c.amp, workers=c.workers, progress=self.log.progress
            )
            self.log.metrics(self.step, epoch, metrics)
        self.last = {**self.last, **metrics}
        if self.val_set is None or not self.best or (metrics.get("AP") or 0.0) > (self.best.get("AP") or 0.0):
            self.best = {**metrics, "step": self.step}
            if rank() == 0:
                save_checkpoint(self.folder / "best.pt", {**self._header(), "model": model.state_dict()})

    def _header(self) -> dict[str, Any]:
        """What every checkpoint says of itself."""
        return {
            "step": self.step,
            "model_config": self.model.config,
            "class_names": self.model.class_names,
            "config": self.config.to_dict(),
            "metrics": self.last,
        }

    def _save(self) -> None:
        """last.pt: the whole run, since order of data, rate and random numbers follow from `step`."""
        # A loss that is not finite is found here, before the weights that it left are saved.
        self._log_losses((self.step - 1) // self.steps_per_epoch)
        if rank() > 0:
            return
        state = {
            **self._header(),
            "model": self.model.state_dict(),
            "ema": self.average.model.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "seconds": self.seconds,
            "num_images": self.num_images,
            "processes": world_size(),
        }
        save_checkpoint(self.folder / "last.pt", state)
        self.saved = self.step

    def _restore(self, stored: dict[str, Any]) -> None:
        """Go back to what `_save` saved; raises InputError if data or processes have changed since."""
        now = {"num_images": self.num_images, "processes": world_size(), "class_names": self.model.class_names}
        for name, value in now.items():
            if stored[name] != value:
                raise InputError(
                    f"{name} is {value}, but was {stored[name]} when the run in {self.config.out} was saved; it can "
                    "only go on with the same data and number of processes"
                )
        try:
            self.model.load_state_dict(stored["model"])
            if self.average is not None:
                self.average.model.load_state_dict(stored["ema"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.scaler.load_state_dict(stored["scaler"])
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            what = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"the state in {self.config.out} does not fit its own settings ({what})") from error
        self.step, self.seconds = stored["step"], stored["seconds"]
        self.saved = self.step
        self.last, self.best = stored["metrics"], stored["best"]
