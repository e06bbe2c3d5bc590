"""The fast paths of the focal loss: the same numbers as the reference, one copy of memory, and torch's own checks."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focal_tutorial import _fused_cpp, fused
from focal_tutorial.losses import focal_term_second_derivative, sigmoid_focal_loss

INF = math.inf
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GAMMAS = (0.0, 0.1, 0.5, 1.0, 1.5, 1.7, 2.0, 3.0, 4.0, 5.0, 6.0)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}


@pytest.fixture(params=["triton"] if INTERPRETED else ["eager", "cpp"])
def path(request, monkeypatch):
    """Force one implementation. Triton runs here in its interpreter, in the subprocess of the last test."""
    name = request.param
    if name == "cpp" and _fused_cpp.library() is None:
        pytest.skip("no C++ compiler here: the package uses the eager path, which is tested")
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", name)
    return name


def dtypes(path: str) -> list[torch.dtype]:
    every = {"eager": [torch.float64, torch.float32, torch.bfloat16, torch.float16]}
    every["cpp"] = [torch.float32, torch.bfloat16]
    every["triton"] = [torch.float32, torch.bfloat16, torch.float16]
    return every[path]


def loss_and_gradient(x, *args, **kwargs):
    x = x.detach().requires_grad_()
    loss = sigmoid_focal_loss(x, *args, **kwargs)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def assert_close(got, wanted, dtype, path, slack=0.0, floor=0.0):
    """Within the dtype's tolerance of a float64 value."""
    info = torch.finfo(dtype)
    relative = TOLERANCE.get(dtype, info.eps / 2 + 3e-6) + slack
    if path == "triton":  # the interpreter's fma rounds twice, and it cuts bfloat16 off
        relative += 4e-6 + (info.eps / 2 if dtype == torch.bfloat16 else 0.0)
        floor += info.smallest_normal
    floor += info.smallest_normal * (1.001 if dtype in TOLERANCE else info.eps)
    equal = (got.double() == wanted) | ((got.double() - wanted).abs() <= relative * wanted.abs() + floor)
    assert equal.all(), (got[~equal][:3], wanted[~equal][:3])


@pytest.mark.parametrize("gamma", GAMMAS)
def test_every_logit_against_the_reference_in_float64(path, gamma, monkeypatch):
    sweep = torch.arange(-80 * 64, 80 * 64 + 1, 1 if path != "triton" else 33) / 64
    far = torch.tensor([INF, -INF, 85.0, -85, 88, -88, 95, -95, 101, -101, 1000, -1000, 1e30, -1e30, 3e38, -3e38])
    values = torch.cat([sweep, far, torch.tensor([1e-8, -1e-8, 1e-4, -1e-4, 0.0, -0.0])])
    for dtype in dtypes(path):
        x = values.to(dtype)[:, None].repeat(1, 2)
        labels = torch.full((len(x),), 0)  # column 0 positive, column 1 negative
        hard = torch.tensor([1.0, 0.0]).expand(len(x), 2)
        soft = torch.tensor([0.3, 1e-20]).expand(len(x), 2)
        wide = torch.cat([x, x[:, 1:].repeat(1, 38)], 1)  # from 32 columns on, eager takes another way
        for logits, targets in ((x, labels), (x, hard), (x, soft), (wide, labels)):
            got = loss_and_gradient(logits, targets, 0.25, gamma)
            with monkeypatch.context() as m:
                m.setenv("FOCAL_TUTORIAL_PATH", "reference")
                wanted = loss_and_gradient(logits.double(), targets, 0.25, gamma)
            for a, b in zip(got, wanted, strict=True):
                # the gradient of a soft target crosses zero
                eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
                loose = {"slack": 20 * eps, "floor": 4 * eps} if targets is soft else {}
                assert_close(a, b, dtype, path, **loose)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_options_against_the_reference(path, reduction, monkeypatch):
    torch.manual_seed(0)
    for shape in ((300, 80), (37, 91), (500, 1), (2, 150, 40), (3, 5000), (7,)):
        classes = shape[-1]
        x = torch.randn(shape) * 5
        labels = torch.randint(-2, classes, shape[:-1])
        for targets in (labels, (labels.unsqueeze(-1) == torch.arange(classes)).float(), torch.rand(shape)):
            for alpha in (0.25, None, -1, 1.0, torch.rand(classes), torch.tensor(0.4)):
                got = loss_and_gradient(x, targets, alpha, 2.0, reduction)
                with monkeypatch.context() as m:
                    m.setenv("FOCAL_TUTORIAL_PATH", "reference")
                    wanted = loss_and_gradient(x.double(), targets, alpha, 2.0, reduction)
                if not wanted[0].isnan().any():  # a mean over no rows
                    zero = 3e-7 if targets.is_floating_point() else 0.0  # a soft target's gradient crosses zero
                    for a, b in zip(got, wanted, strict=True):
                        assert_close(a, b, torch.float32, path, slack=1e-6, floor=zero)
        if path == "triton" and reduction != "sum":
            break  # the interpreter is slow


def test_elementwise_gradients_and_the_normalizer(path):
    torch.manual_seed(1)
    x, labels, weights = torch.randn(50, 40), torch.randint(-2, 40, (50,)), torch.rand(50, 40)
    x.requires_grad_()
    terms = sigmoid_focal_loss(x, labels)
    (got,) = torch.autograd.grad((terms * weights).sum(), x)
    (plain,) = torch.autograd.grad(sigmoid_focal_loss(x, labels, reduction="sum"), x)
    torch.testing.assert_close(got, plain * weights, rtol=1e-6, atol=0)
    scaled = sigmoid_focal_loss(x, labels, reduction="sum", normalizer=torch.tensor(8.0))
    assert torch.equal(torch.autograd.grad(scaled, x)[0], plain / 8)


def test_special_rows(path):
    for classes in (3, 40):
        x = torch.zeros(4, classes)
        x[1] = math.nan
        x[2] = INF
        loss, gradient = loss_and_gradient(x, torch.tensor([-1, -2, -2, 0]), reduction="sum")
        assert loss.isfinite() and gradient.isfinite().all() and (gradient[1:3] == 0).all()
        assert loss_and_gradient(x, torch.tensor([-1, -1, -2, 0]), reduction="sum")[0].isnan()
        assert loss_and_gradient(x, torch.tensor([-1, -2, -1, 0]), reduction="sum")[0] == INF


def test_labels_out_of_range(path):
    x = torch.zeros(3, 4)
    for label in (4, -3):
        if path == "triton":  # looking would stall the stream
            assert sigmoid_focal_loss(x, torch.tensor([0, label, 1]), reduction="sum").isnan()
        else:
            with pytest.raises(ValueError, match=f"got {label}"):
                sigmoid_focal_loss(x, torch.tensor([0, label, 1]))


def test_the_same_bits_from_run_to_run(path):
    """For C++ and the kernels with any number of threads; PyTorch's own operations differ with it in the last bit."""
    torch.manual_seed(2)
    rows = 30 if path == "triton" else 9000
    x, labels = torch.randn(rows, 80), torch.randint(-2, 80, (rows,))
    before = torch.get_num_threads()
    results = []
    for threads in (2, 2, 2) if path == "eager" else (1, 1, 2, 3):
        torch.set_num_threads(threads)
        results.append(loss_and_gradient(x, labels, reduction="sum"))
    torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(gradient, results[0][1])


def test_two_backwards_and_two_derivatives(path):
    torch.manual_seed(3)
    x, labels = torch.randn(6, 40).requires_grad_(), torch.tensor([0, -1, -2, 39, 5, -1])
    loss = sigmoid_focal_loss(x, labels, reduction="sum")
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(x.grad, first * 2)
    for gamma in (0.0, 0.5, 2.0):
        for reduction in ("sum", "none"):
            terms = sigmoid_focal_loss(x, labels, 0.25, gamma, reduction)
            (gradient,) = torch.autograd.grad(terms.sum(), x, create_graph=True)
            (curvature,) = torch.autograd.grad(gradient.sum(), x)
            sign = 2.0 * (labels[:, None] == torch.arange(40)) - 1
            wanted = focal_term_second_derivative(sign * x.detach(), gamma) * (0.5 - 0.25 * sign)
            wanted[2] = 0
            torch.testing.assert_close(curvature, wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reduce", [True, False])
def test_opcheck(path, reduce):
    torch.manual_seed(4)
    x = torch.randn(12, 40, requires_grad=True)
    labels, dense = torch.randint(-2, 40, (12,)), torch.rand(12, 40)
    grad = torch.randn(()) if reduce else torch.randn(12, 40)
    for targets in (labels, dense):
        for class_weight in (None, torch.rand(2, 40)):
            arguments = (x, targets, class_weight, 0.25, 0.75, 2.0)
            torch.library.opcheck(torch.ops.focal_tutorial.focal_forward, (*arguments, reduce))
            torch.library.opcheck(torch.ops.focal_tutorial.focal_backward, (grad, *arguments))


def test_nothing_is_kept_for_the_backward(path):
    x, labels = torch.randn(64, 80, requires_grad=True), torch.randint(-1, 80, (64,))
    known, kept = {x.data_ptr(), labels.data_ptr()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        sigmoid_focal_loss(x, labels, reduction="sum", normalizer=torch.tensor(5.0))
    extra = [t for t in kept if t.data_ptr() not in known]
    assert sum(t.numel() for t in extra) <= 2  # the normalizer and the loss it divides


def test_autocast(path):
    x, labels = torch.randn(8, 40), torch.randint(-1, 40, (8,))
    weight = torch.randn(40, 40, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = x @ weight
        loss = sigmoid_focal_loss(logits, labels, reduction="sum")
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    wide = logits.detach().float()
    torch.testing.assert_close(loss.detach(), sigmoid_focal_loss(wide, labels, reduction="sum"), rtol=1e-5, atol=0)
    assert weight.grad.isfinite().all()


def test_compiles_as_one_graph(path):
    """Dynamo and AOTAutograd without their code generator: no break, the same numbers, forward and backward."""
    torch._dynamo.reset()
    x, labels = torch.randn(8, 40), torch.randint(-1, 40, (8,))

    def loss(x, labels, count):
        return sigmoid_focal_loss(x * 2, labels, reduction="sum", normalizer=count)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        z = x.clone().requires_grad_()
        value = function(z, labels, torch.tensor(3.0))
        value.backward()
        results.append((value.detach(), z.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.skipif(INTERPRETED, reason="needs the CPU's own paths")
def test_compiles_at_a_size_that_may_call_the_compiler(monkeypatch):
    monkeypatch.delenv("FOCAL_TUTORIAL_PATH", raising=False)
    torch._dynamo.reset()
    _fused_cpp.library.cache_clear()
    x, labels = torch.randn(fused.COMPILE_FROM // 64, 64), torch.full((fused.COMPILE_FROM // 64,), -1)
    compiled = torch.compile(sigmoid_focal_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, labels, reduction="sum"), sigmoid_focal_loss(x, labels, reduction="sum"))


@pytest.mark.skipif(INTERPRETED, reason="needs the CPU's own paths")
def test_which_path_is_taken(monkeypatch):
    monkeypatch.delenv("FOCAL_TUTORIAL_PATH", raising=False)
    small, large = torch.zeros(10, 4), torch.zeros(fused.COMPILE_FROM, 1)
    assert fused.path_for(small) == "eager"  # never waits for a compiler
    assert fused.path_for(large) == ("eager" if _fused_cpp.library() is None else "cpp")
    assert fused.path_for(large.double()) == fused.path_for(large.half()) == "eager"
    assert fused.path_for(small.to("meta")) == "reference"
    for dtype in (torch.float64, torch.float16):  # the C++ does not know them, even when asked to
        monkeypatch.setenv("FOCAL_TUTORIAL_PATH", "cpp")
        assert fused.path_for(small.to(dtype)) == "eager"
    monkeypatch.setenv("FOCAL_TUTORIAL_PATH", "fast")
    with pytest.raises(ValueError, match="FOCAL_TUTORIAL_PATH must be one of"):
        sigmoid_focal_loss(small, small)


@pytest.mark.skipif(INTERPRETED, reason="needs the CPU's own paths")
def test_no_compiler_is_no_error(monkeypatch, tmp_path):
    monkeypatch.delenv("FOCAL_TUTORIAL_PATH", raising=False)
    x, labels = torch.randn(fused.COMPILE_FROM // 80 + 1, 80), torch.full((fused.COMPILE_FROM // 80 + 1,), -1)
    wanted = loss_and_gradient(x, labels, reduction="sum")
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    for search_path in ("", str(tmp_path)):  # none at all, and one that fails
        with monkeypatch.context() as m:
            m.setenv("PATH", search_path)
            m.delenv("CXX", raising=False)
            m.setenv("XDG_CACHE_HOME", str(tmp_path))
            _fused_cpp.library.cache_clear()
            assert _fused_cpp.library() is None and fused.path_for(x) == "eager"
            got = loss_and_gradient(x, labels, reduction="sum")
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=5e-6, atol=1e-30)
    _fused_cpp.library.cache_clear()


@pytest.mark.skipif(INTERPRETED or not Path("/proc/self/clear_refs").exists(), reason="needs Linux and the CPU")
@pytest.mark.parametrize("name", ["eager", "cpp"])
def test_peak_memory(name):
    """Forward and backward of 31 MB of logits: at most 1.3 times that on top, the gradient included."""
    if name == "cpp" and _fused_cpp.library() is None:
        pytest.skip("no C++ compiler here")
    program = """
import torch
from pathlib import Path
from focal_tutorial.losses import sigmoid_focal_loss
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
def step(x):
    sigmoid_focal_loss(x, labels[: len(x)], reduction="sum").backward()
torch.set_num_threads(1)
x, labels = torch.randn(98208, 80, requires_grad=True), torch.full((98208,), -1)
labels[::100] = 3
step(torch.randn(5000, 80, requires_grad=True))
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
step(x)
print((memory("VmHWM") - before) / (x.numel() * 4))
"""
    environment = os.environ | {"FOCAL_TUTORIAL_PATH": name, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    assert 0.9 < float(done.stdout) < 1.3


@pytest.mark.skipif(INTERPRETED, reason="is the one that starts the interpreter")
def test_kernels_under_the_interpreter():
    """Run the tests above on Triton's kernels: TRITON_INTERPRET must stand before triton is imported."""
    pytest.importorskip("triton", reason="Triton is not installed: CUDA would take the reference path")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "triton"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="more than 2^31 elements: needs a GPU")
def test_more_than_2_to_the_31_elements():
    classes = 80
    rows = (2**31 + 2**20) // classes
    x = torch.zeros(rows, classes, dtype=torch.bfloat16, device="cuda")
    x[-1, 3] = 4.0
    x.requires_grad_()
    labels = torch.full((rows,), -1, device="cuda")
    labels[-1] = 3
    loss = sigmoid_focal_loss(x, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    easy = sigmoid_focal_loss(torch.zeros(1), torch.zeros(1)).item()
    assert loss.item() == pytest.approx(easy * (rows * classes - 1), rel=1e-6)
    assert gradient[-1, 3] < 0 and (gradient[-1, 4:] == gradient[0, 0]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's kernels on the device: needs a GPU")
@pytest.mark.parametrize("gamma", GAMMAS)
def test_kernels_on_the_device(gamma):
    torch.manual_seed(6)
    for dtype in dtypes("triton"):
        for shape in ((1000, 80), (999, 91), (5000, 1)):
            x = (torch.randn(shape, device="cuda") * 8).to(dtype)
            labels = torch.randint(-2, shape[1], shape[:1], device="cuda")
            for targets in (labels, torch.rand(shape, device="cuda")):
                got = loss_and_gradient(x, targets, 0.25, gamma)
                wanted = loss_and_gradient(x.double(), targets, 0.25, gamma)  # float64: the reference path
                for a, b in zip(got, wanted, strict=True):
                    assert_close(a, b, dtype, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs: needs a GPU")
def test_in_a_cuda_graph():
    x = torch.randn(1000, 80, device="cuda", requires_grad=True)
    labels = torch.randint(-2, 80, (1000,), device="cuda")
    wanted = loss_and_gradient(x, labels, reduction="sum")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(sigmoid_focal_loss(x, labels, reduction="sum"), x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = sigmoid_focal_loss(x, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(loss, wanted[0]) and torch.equal(gradient, wanted[1])
