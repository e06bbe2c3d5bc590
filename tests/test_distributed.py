"""What one process does with the words of several, and the messages; several are tested in test_train_ddp.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from focal_tutorial import distributed
from focal_tutorial.errors import InputError
from focal_tutorial.train_config import TrainConfig

CPU = torch.device("cpu")


def test_one_process_needs_no_group() -> None:
    with distributed.process_group(CPU) as device, distributed.first_of_machine_first():
        assert device == CPU and not dist.is_initialized()
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.share(3) == 3 and distributed.gather_lists([1, 2]) == [1, 2]
        assert distributed.sum_over_ranks(torch.tensor(2.0)) == 2
        distributed.require_same({"images": 4})
        model = nn.Linear(1, 1)
        assert distributed.data_parallel(model) is model


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(InputError, match=r"process 1 of this machine.* has no GPU: torch finds 1; start fewer"),
        distributed.process_group(torch.device("cuda")),
    ):
        pass


def test_each_process_has_its_own_gpu_and_leaves_a_failed_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's group is not left by a process that failed: it might wait for the others for ever."""
    done: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: done.append(index))
    monkeypatch.setattr(dist, "init_process_group", lambda backend: done.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: done.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("left"))
    with distributed.process_group(torch.device("cuda")) as device:
        assert device == torch.device("cuda", 1)
    assert done == [1, "nccl", "gloo", "left"]
    with pytest.raises(InputError, match="broken image"), distributed.process_group(torch.device("cuda")):
        raise InputError("broken image")
    assert done[4:] == [1, "nccl", "gloo"]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:1] Connection closed by peer"), True),
        (dist.DistNetworkError("the client socket has failed to connect"), True),
        (RuntimeError("DataLoader worker (pid 1) is killed"), False),
        (ValueError("gloo"), False),
    ],
)
def test_a_lost_process_is_told_from_other_faults(
    error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *words, **named: None)
    monkeypatch.setattr(distributed.time, "sleep", lambda seconds: None)
    with pytest.raises(InputError if lost else type(error)) as caught, distributed.process_group(CPU):
        raise error
    assert ("another process has ended" in str(caught.value)) is lost


def test_a_restart_that_finds_old_addresses_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(backend: str) -> None:
        raise RuntimeError("Gloo connectFullMesh failed")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", fail)
    with pytest.raises(RuntimeError, match=r"^Gloo"), distributed.process_group(CPU):
        pass
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(InputError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), distributed.process_group(CPU):
        pass


def test_resume_or_start_needs_a_folder() -> None:
    with pytest.raises(InputError, match="name the run folder"):
        TrainConfig(resume_or_start=True)


def test_words_of_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of torch.distributed, which here answers as process 0 of two would hear it."""
    asked: list[str] = []

    def gather(items: list[int], lists: list[Any], dst: int, group: Any) -> None:
        lists[:] = [items, [3]]

    def everyone(out: list[Any], values: dict[str, Any], group: Any) -> None:
        out[:] = [values, {**values, "steps": 8}]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_reduce", lambda values: values.mul_(2))
    monkeypatch.setattr(dist, "broadcast", lambda values, src: asked.append("broadcast"))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src, group: box.append(src))
    monkeypatch.setattr(dist, "gather_object", gather)
    monkeypatch.setattr(dist, "all_gather_object", everyone)
    monkeypatch.setattr(dist, "barrier", lambda group: asked.append("barrier"))
    assert distributed.sum_over_ranks(torch.tensor(2.0)) == 4
    assert distributed.share("mine") == "mine"
    assert distributed.gather_lists([1, 2]) == [1, 2, 3]
    distributed.require_same({"images": 4})
    with pytest.raises(InputError, match=r"^steps: 9 on process 0, but 8 on process 1; .*same data and settings"):
        distributed.require_same({"images": 4, "steps": 9})
    distributed.same_buffers(nn.BatchNorm1d(2))  # its mean, variance and count
    assert asked == ["broadcast"] * 3
    for local, order in (("0", ["work", "barrier"]), ("1", ["barrier", "work"])):
        asked.clear()
        monkeypatch.setenv("LOCAL_RANK", local)
        with distributed.first_of_machine_first():
            asked.append("work")
        assert asked == order


def test_model_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are left alone, under the name that this torch has for it."""
    given: dict[str, Any] = {}

    class Parallel(nn.Module):
        def __init__(self, module: nn.Module, forward_sync_buffers: bool = True, **options: Any) -> None:
            super().__init__()
            given.update(options, forward_sync_buffers=forward_sync_buffers)

    class Older(nn.Module):
        def __init__(self, module: nn.Module, broadcast_buffers: bool = True, **options: Any) -> None:
            super().__init__()
            given.update(options, broadcast_buffers=broadcast_buffers)

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for kind, name in ((Parallel, "forward_sync_buffers"), (Older, "broadcast_buffers")):
        given.clear()
        monkeypatch.setattr(nn.parallel, "DistributedDataParallel", kind)
        distributed.data_parallel(nn.Linear(1, 1))
        assert given == {name: False, "device_ids": None, "gradient_as_bucket_view": True}
