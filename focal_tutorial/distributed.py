"""The few words of torch.distributed that training and evaluation need. With one process, each does nothing.

`torchrun --nproc-per-node 2 ...` starts the processes and tells each its number through the environment.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import os
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from focal_tutorial.errors import InputError

T = TypeVar("T")

# Rank 0 may compute AP for longer than NCCL's ten minutes or gloo's thirty, while the others wait for its answer. A
# process that ends closes its connections, and is noticed at once; only one that hangs is waited for.
PATIENCE = datetime.timedelta(hours=6)
_objects: Any = None  # carries Python objects: always gloo, and patient; None: the default group


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, and leave at the end; yields this process's device.

    gloo carries CPU tensors and NCCL CUDA tensors, each process with the GPU of its local rank. Without
    torchrun, or inside a group that exists already, `device` comes back as it is.

    Raises:
        InputError: for more processes than GPUs on a machine, and when another process has ended.
    """
    global _objects
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = _own_gpu()
    _join(device)
    _objects = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield device
    except BaseException as error:
        # Perhaps this process alone has failed. NCCL's group is left in order by all together or not at all: the others
        # may be waiting for this one, and it would wait for them.
        if device.type != "cuda":
            dist.destroy_process_group()
        if _lost_contact(error):
            time.sleep(5)  # torchrun ends us as soon as it sees who failed first, and then names that one only
            raise InputError(
                f"another process has ended or does not answer; see its message ({str(error).splitlines()[0]})"
            ) from error
        raise
    else:
        dist.destroy_process_group()
    finally:
        _objects = None


def _join(device: torch.device) -> None:
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except RuntimeError as error:
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            raise
        raise InputError(
            f"the processes do not find each other after a restart ({str(error).splitlines()[0]}); torchrun may have "
            "handed on addresses of the last start: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it"
        ) from error


def _own_gpu() -> torch.device:
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise InputError(
            f"process {index} of this machine, counted from 0, has no GPU: torch finds {torch.cuda.device_count()}; "
            "start fewer (--nproc-per-node)"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _lost_contact(error: BaseException) -> bool:
    """Whether torch raised it because a process of the group is gone: gloo has no class of errors of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def rank() -> int:
    """This process's number, 0 to world_size() - 1. Rank 0 writes the files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def first_of_machine_first() -> Iterator[None]:
    """What is within, the first process of each machine does before the others: it downloads, they find the file."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if world_size() > 1 and not first:
        dist.barrier(group=_objects)
    yield
    if world_size() > 1 and first:
        dist.barrier(group=_objects)


def require_same(values: dict[str, Any]) -> None:
    """Check that all processes hold the same values, with which they would otherwise wait for each other for ever.

    Args:
        values: name → anything picklable.

    Raises:
        InputError: on every process; names the first value that differs, and where.
    """
    if world_size() == 1:
        return
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, values, group=_objects)
    for name, value in everyone[0].items():
        for number, others in enumerate(everyone):
            if others[name] != value:
                raise InputError(
                    f"{name}: {value} on process 0, but {others[name]} on process {number}; all processes need the "
                    "same data and settings, and one run folder that every machine sees"
                )


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` added up over the processes, in place, on every one of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def data_parallel(model: nn.Module) -> nn.Module:
    """`model`, which several processes train together: its backward pass averages the gradients over them (DDP).

    Every parameter that learns takes part in every step, one without boxes too, so none is looked for. Buffers are
    left alone: those of batch norm are each process's own until `same_buffers`.
    """
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    parallel = nn.parallel.DistributedDataParallel
    renamed = "forward_sync_buffers" in inspect.signature(parallel.__init__).parameters  # the old name warns
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    ids = [device] if device.type == "cuda" else None
    return parallel(model, device_ids=ids, gradient_as_bucket_view=True, **options)


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
    dist.broadcast_object_list(box, src=0, group=_objects)
    return box[0]


def gather_lists(items: list[T]) -> list[T]:
    """The lists of all processes joined on rank 0; an empty list on the others."""
    if world_size() == 1:
        return items
    lists: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(items, lists, dst=0, group=_objects)
    return [item for part in lists or [] for item in part]
