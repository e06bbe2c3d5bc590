"""Batches that depend on (seed, epoch) alone: not on the number of workers, nor on where a run was resumed.

The sampler hands out `(epoch, index)` pairs, and each item is drawn with torch's generator seeded by
(seed, epoch, index). So item 17 of epoch 3 is augmented in the same way by any worker of any run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from focal_tutorial.data.dataset import DetectionDataset, Target
from focal_tutorial.errors import InputError
from focal_tutorial.stopping import leave_stopping_to_parent

Batch = tuple[Tensor | list[Tensor], list[Target]]


def make_loader(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    workers: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> EpochLoader:
    """A loader of `(images, targets)`, reproducible by `(seed, epoch)`.

    `images` is a uint8 tensor (N, 3, H, W) where all sizes agree, else a list of (3, H, W); `targets` a list
    of dictionaries of plain tensors. Call `loader.set_epoch(epoch, start_batch)` before each epoch.

    Args:
        dataset: the images.
        batch_size: N, for each process.
        shuffle: a new order each epoch; else the dataset's order.
        seed: of order and augmentation.
        workers: processes that load; 0 loads in this one.
        drop_last: leave out a last incomplete batch.
        rank, world_size: this process among those that share the dataset. All ranks' b-th batches together
            are the b-th batch of one process with `batch_size * world_size`; if the last is not divisible,
            images from the epoch's start fill it up, so that each rank has the same number.
        pin_memory: copy batches to page-locked memory, for a GPU.

    Raises:
        InputError: from the iteration, when an image cannot be read; or at once, when `drop_last` leaves no
            batch.
    """
    sampler = EpochBatchSampler(len(dataset), batch_size, shuffle, seed, drop_last, rank, world_size)
    if len(sampler) == 0:
        raise InputError(
            f"{len(dataset)} images make no full batch of {batch_size * world_size}: use a smaller batch size"
        )
    return EpochLoader(
        _SeededItems(dataset, seed),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=leave_stopping_to_parent,
        generator=torch.Generator().manual_seed(0),  # else each epoch takes a number from the caller's generator
    )


class EpochLoader(DataLoader[Any]):
    """A `DataLoader` that can be set to an epoch and a batch in it."""

    batch_sampler: EpochBatchSampler

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """The next iteration is epoch `epoch`, from its batch `start_batch` (counted from 0) to its end."""
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(
                f"epoch {epoch}, start_batch {start_batch}: want epoch >= 0, 0 <= start_batch <= {len(self)}"
            )
        self.batch_sampler.epoch, self.batch_sampler.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, InputError):
                break
            yield batch
        else:
            return
        # Raised here and not in a worker, for its message to stay one line. The workers end first: a traceback that
        # someone keeps would keep them, too.
        message = str(batch)
        self._iterator = None
        del batches, batch
        raise InputError(message)


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Lists of `(epoch, index)`, one a batch. `len()` is the number of batches of a whole epoch."""

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        rank: int,
        world_size: int,
    ) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"need at least one item and batch_size >= 1, got {num_items} and {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0…{world_size - 1} for world_size {world_size}, got {rank}")
        self.num_items, self.batch_size, self.shuffle, self.seed = num_items, batch_size, shuffle, seed
        self.drop_last, self.rank, self.world_size = drop_last, rank, world_size
        self.epoch, self.start_batch = 0, 0

    def __len__(self) -> int:
        whole = self.batch_size * self.world_size
        return self.num_items // whole if self.drop_last else -(-self.num_items // whole)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        whole = self.batch_size * self.world_size
        for batch in range(self.start_batch, len(self)):
            chunk = order[batch * whole : (batch + 1) * whole]
            share = len(chunk) // self.world_size  # batch_size, or less in the last batch
            yield [(self.epoch, index) for index in chunk[self.rank * share : (self.rank + 1) * share]]

    def _order(self) -> list[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
            order = torch.randperm(self.num_items, generator=generator).tolist()
        else:
            order = list(range(self.num_items))
        missing = -len(order) % self.world_size
        return order + (order * missing)[:missing]


class _SeededItems(Dataset[Any]):
    """Items by `(epoch, index)`, drawn with torch's generator seeded for them; it is left as it was."""

    def __init__(self, dataset: DetectionDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
        try:
            return self.dataset[index]
        except InputError as error:
            return error
        finally:
            torch.default_generator.set_state(state)


def collate(samples: list[Any]) -> Batch | InputError:
    """Stack images of one size, list others; boxes become plain tensors. An error takes the batch's place."""
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    images = [image.as_subclass(Tensor) for image, _ in samples]  # each (3, H, W)
    targets = [{**target, "boxes": target["boxes"].as_subclass(Tensor)} for _, target in samples]
    same_size = len({image.shape for image in images}) == 1
    return (torch.stack(images) if same_size else images), targets


def _mix(*numbers: int) -> int:
    """One 64-bit seed from several non-negative numbers; close ones give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
