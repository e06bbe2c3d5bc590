"""The few words of torch.distributed that training and evaluation need. With one process, each does nothing.

`torchrun --nproc-per-node 2 ...` starts the processes and tells each its number through the environment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, and leave at the end; yields this process's device.

    gloo carries CPU tensors and NCCL CUDA tensors, each process with the GPU of its local rank. Without
    torchrun, or inside a group that exists already, `device` comes back as it is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 to world_size() - 1. Rank 0 writes the files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` added up over the processes, in place, on every one of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def same_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers: each has gathered statistics of batch norm from its own images."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def share(value: T) -> T:
    """Rank 0's `value` on every process (any picklable object; the other ranks' is not looked at)."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_lists(items: list[T]) -> list[T]:
    """The lists of all processes joined on rank 0; an empty list on the others."""
    if world_size() == 1:
        return items
    lists: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(items, lists, dst=0)
    return [item for part in lists or [] for item in part]
