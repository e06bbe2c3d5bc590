"""Deterministic mode: two runs with one seed on one device leave the same bytes; what it sets, and puts back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import assert_same_run, config, same

from focal_tutorial import sigmoid_focal_loss
from focal_tutorial.errors import InputError
from focal_tutorial.train import TrainConfig, train
from focal_tutorial.train_setup import computing

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CASES: dict[str, dict[str, Any]] = {
    "averaged weights": {},
    "two loaders": {"workers": 2},
    "bf16": {"amp": "bf16"},
    "accumulation": {"accumulate": 2, "batch_size": 1},
    "augmentation and SGD": {"colour": 0.3, "scale": (0.8, 1.25), "flip_vertical": 0.5, "optimizer": "sgd"},
    "two threads": {"threads": 2, "steps": 3},
}


def weights(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / "last.pt", weights_only=True)
    return {name: state[name] for name in ("model", "ema", "optimizer", "step")}


@pytest.mark.parametrize("case", CASES)
def test_two_runs_leave_the_same_bytes(tmp_path: Path, case: str) -> None:
    settings = {"deterministic": True, "eval_every": 1, **CASES[case]}
    for name in ("one", "two"):
        train(config(tmp_path / name, **settings), progress=False)
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("case", ["bf16", "accumulation", "two loaders"])
def test_resumed_in_the_middle_of_an_epoch(tmp_path: Path, monkeypatch: Any, case: str) -> None:
    settings = {"deterministic": True, "save_every": 4, **CASES[case]}
    train(config(tmp_path / "whole", **settings), progress=False)

    class Killed(BaseException):
        pass

    def kill(step: int, model: Any) -> None:
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(config(tmp_path / "resumed", **settings), progress=False, after_step=kill)
    train(TrainConfig(out=str(tmp_path / "resumed"), resume=True), progress=False)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


def test_two_processes(tmp_path: Path) -> None:
    """Two gloo processes add two gradients, and a sum of two has no order."""
    words = ["train", "--deterministic", "--steps", "6", "--batch-size", "2", "--warmup-steps", "2", "--device", "cpu"]
    words += [word for pair in ("num_train=12", "num_val=2", "size=64") for word in ("--shapes", pair)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name in ("one", "two"):
        command = [*torchrun, "-m", "focal_tutorial", *words, "--out", str(tmp_path / name)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_it_is_set_for_the_run_and_put_back() -> None:
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    with computing(TrainConfig(deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()  # what cannot repeat stops, and says so
        assert not torch.backends.cudnn.benchmark and torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == before
    with computing(TrainConfig()):
        assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()


def test_the_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own setting is kept where it serves, and refused where it does not and a GPU may be used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with computing(TrainConfig(deterministic=True)):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")
    with computing(TrainConfig(deterministic=True, device="cpu")), computing(TrainConfig()):
        pass
    with (
        pytest.raises(InputError, match=r"CUBLAS_WORKSPACE_CONFIG is .*unset it"),
        computing(TrainConfig(deterministic=True)),
    ):
        pass


@needs_cuda
@pytest.mark.parametrize("case", ["averaged weights", "bf16", "accumulation"])
def test_two_runs_on_a_gpu_leave_the_same_bytes(tmp_path: Path, case: str) -> None:
    settings = {"deterministic": True, "device": "cuda", **CASES[case]}
    for name in ("one", "two"):
        train(config(tmp_path / name, **settings), progress=False)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


@needs_cuda
def test_two_runs_of_a_resnet_on_a_gpu(tmp_path: Path) -> None:
    settings = {"deterministic": True, "device": "cuda", "model": "retinanet_resnet18_fpn", "model_options": {}}
    for name in ("one", "two"):
        train(config(tmp_path / name, **settings, canvas=(128, 128), steps=6), progress=False)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_focal_loss_kernel_adds_in_one_order(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200_000, 91, generator=generator).to("cuda", dtype)
    labels = torch.randint(-2, 91, (200_000,), generator=generator).cuda()
    found = []
    for _ in range(5):
        x = logits.clone().requires_grad_()
        loss = sigmoid_focal_loss(x, labels, reduction="sum")
        loss.backward()
        found.append((loss.detach(), x.grad))
    assert all(torch.equal(loss, found[0][0]) and torch.equal(grad, found[0][1]) for loss, grad in found)
