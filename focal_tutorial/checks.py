"""Self-checks that a chapter hands to its reader: they take the reader's own code and say what is off about it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focal_tutorial.heads import RetinaNetHead, flatten_level, prior_bias

Build = Callable[[int, int, int], nn.Module]
GRIDS = ((4, 6), (2, 3), (1, 1))  # height and width differ, so that rows and columns cannot be confused
PAPER, SMALL = (256, 9, 80), (8, 2, 3)  # C, A, K
PRIOR_BIAS = prior_bias(0.01)
NAMES = ("class subnet", "box subnet")


def check_head(build: Build) -> str:
    """Compare a head of your own with the contract of :class:`focal_tutorial.heads.RetinaNetHead` (paper, section 4).

    The contract: `build(in_channels, num_anchors, num_classes)` gives a module that takes a list of levels
    `(N, C, H, W)` and returns class logits `(N, R, K)` and box deltas `(N, R, 4)`, rows in the order of
    `AnchorGenerator`; two subnets without a common weight, each the same on every level; four 3×3 convolutions of 256
    filters with ReLU and a last one without, all of them `nn.Conv2d`; weights from N(0, 0.01²), biases 0, and −log 99
    in the last one of the class subnet; equal to the package's head on the same weights.

    Args:
        build: your class, or a function that makes your module.

    Returns:
        A line that says so, if nothing is wrong.

    Raises:
        AssertionError: with a line for each point that fails. What cannot be judged because of it is not judged.
    """
    c, a, k = PAPER
    problems = _shapes(build)
    if not problems:
        head = build(c, a, k)
        problems = _structure(head) + _start(head)
    if not problems:
        head = build(c, 3, 5)
        _scramble(head)
        problems = _numbers(head, c, 3, 5) or _flow(head, c, 3)
    if problems:
        raise AssertionError("\n".join(problems))
    return "right: the same head as the package's"


def _levels(n: int, channels: int, grids: Sequence[tuple[int, int]] = GRIDS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, channels, h, w, generator=generator) for h, w in grids]


def _shapes(build: Build) -> list[str]:
    """Whether the head can be called, what comes out, and whether it leaves its input alone; the first thing off."""
    if isinstance(build, nn.Module):
        return ["calling: the class itself is wanted, check_head(Head), and not a head made from it"]
    n, (c, a, k), grids = 2, SMALL, (*GRIDS, (1, 2), (1, 1))
    setting = f"N={n}, C={c}, A={a}, K={k}, grids {list(grids)}"
    levels = _levels(n, c, grids)
    try:
        head, given = build(c, a, k), [x.clone() for x in levels]
        out = head(given)
    except Exception as error:  # the reader's code: whatever it raises is the answer
        return [f"calling: with {setting} the head raised {type(error).__name__}: {error}"]
    if not (isinstance(out, tuple | list) and len(out) == 2 and all(isinstance(x, Tensor) for x in out)):
        return [f"output: a pair of tensors wanted, (logits, deltas), got {_describe(out)}"]
    rows = a * sum(h * w for h, w in grids)
    got, wanted = [tuple(x.shape) for x in out], [(n, rows, k), (n, rows, 4)]
    if got == wanted[::-1]:
        return ["output: the deltas come first; the logits should"]
    for name, is_, should in zip(("logits", "deltas"), got, wanted, strict=True):
        if is_ != should:
            return [f"shape: {name} {should} wanted for {setting}, got {is_}"]
    if not all(torch.equal(x, y) for x, y in zip(given, levels, strict=True)):
        return ["input: the head changes the levels that it is given; is there a ReLU in place on them?"]
    if not all(torch.equal(x, y) for x, y in zip(out, head(levels), strict=True)):
        return ["output: the same levels get other numbers at a second call"]
    return []


def _describe(out: object) -> str:
    if isinstance(out, tuple | list):
        return f"a {type(out).__name__} of " + ", ".join(_describe(x) for x in out)
    return f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"


def _subnets(head: nn.Module, levels: list[Tensor]) -> tuple[list[nn.Conv2d], list[nn.Conv2d], list[nn.Parameter]]:
    """The convolutions behind the logits and behind the deltas, in the order of their calls; parameters behind both."""
    called: list[nn.Conv2d] = []
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda module, *_: called.append(module)) for m in convs]
    logits, deltas = head(levels)
    for hook in hooks:
        hook.remove()
    parameters = [p for p in head.parameters() if p.requires_grad]
    reached = [_reached(out, parameters) for out in (logits, deltas)]
    sides = [[m for m in called if id(m.weight) in ids] for ids in reached]
    return sides[0], sides[1], [p for p in parameters if id(p) in reached[0] & reached[1]]


def _reached(out: Tensor, parameters: list[nn.Parameter]) -> set[int]:
    if not (out.requires_grad and parameters):
        return set()
    grads = torch.autograd.grad(out.sum(), parameters, retain_graph=True, allow_unused=True)
    return {id(p) for p, g in zip(parameters, grads, strict=True) if g is not None}


def _structure(head: nn.Module) -> list[str]:
    """Which convolutions there are, and that nothing else is."""
    (c, a, k), one = PAPER, _levels(1, PAPER[0], [(2, 3)])
    *sides, common = _subnets(head, one)
    if common:
        return [f"sharing: {len(common)} parameters serve both subnets; they should have none in common"]
    problems = []
    for name, convs, width in zip(NAMES, sides, (a * k, a * 4), strict=True):
        problems += _convolutions(name, convs, c, width)
    on_five = _subnets(head, one * 5)[:2]
    for name, out, convs, five in zip(NAMES, head(one * 5), sides, on_five, strict=True):
        same = all(torch.equal(rows, out[:, : 6 * a]) for rows in out.split(6 * a, dim=1))
        if not same or set(map(id, convs)) != set(map(id, five)):
            problems.append(f"levels: the {name} has other weights on another level; they should be the same")
    count, wanted = sum(p.numel() for p in head.parameters()), 8 * (9 * c + 1) * c + (9 * c + 1) * a * (k + 4)
    if not problems and count != wanted:
        problems.append(f"parameters: {count:,} for C={c}, A={a}, K={k}, {wanted:,} wanted; look for other layers")
    return problems


def _convolutions(name: str, convs: list[nn.Conv2d], c: int, width: int) -> list[str]:
    """The first thing that is off about the convolutions of one subnet, called in this order for one level."""
    if len(set(map(id, convs))) < len(convs):
        return [f"{name}: a convolution is called twice for one level; each should have weights of its own"]
    if len(convs) != 5:
        hidden = "; a plain list hides its modules, nn.ModuleList does not" if len(convs) < 5 else ""
        found = f"{len(convs)} found on the way back from its output"
        return [f"{name}: 4 + 1 convolutions (nn.Conv2d) wanted, {found}{hidden}"]
    for i, (conv, out) in enumerate(zip(convs, (c, c, c, c, width), strict=True), 1):
        where = f"{name}, convolution {i}:"
        if conv.kernel_size != (3, 3) or conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
            return [f"{where} a plain 3×3 with stride 1 wanted, got {conv}"]
        if conv.padding not in ((1, 1), "same") or conv.padding_mode != "zeros":
            return [f"{where} padding of one zero wanted, got {conv.padding}, {conv.padding_mode}"]
        if conv.out_channels != out:
            return [f"{where} {out} filters wanted, got {conv.out_channels}"]
        if conv.bias is None:
            return [f"{where} a bias wanted, there is none"]
    return []


def _start(head: nn.Module) -> list[str]:
    """The initial weights and biases; nothing if the convolutions are not the five of the contract."""
    problems = []
    for name, convs in zip(NAMES, _subnets(head, _levels(1, PAPER[0], [(2, 3)]))[:2], strict=True):
        if len(convs) != 5:
            continue
        biases = [0.0] * 4 + [PRIOR_BIAS if name == NAMES[0] else 0.0]
        found = [_initial_weight(conv.weight.detach()) for conv in convs]
        found += [_initial_bias(conv.bias, b) for conv, b in zip(convs, biases, strict=True)]
        for kind in dict.fromkeys(text.split()[0] for text in found if text):  # one line for each kind
            where = [i for i, text in enumerate(found) if text.startswith(kind)]
            numbers = ", ".join(str(i % 5 + 1) for i in where)
            problems.append(f"{name}, convolution {numbers}: {found[where[0]]}")
    return problems


def _initial_weight(weight: Tensor) -> str:
    mean, std = weight.mean().item(), weight.std().item()
    if abs(std / 0.01 - 1) > 0.02 or abs(mean) > 0.0005:  # 82,944 numbers at least: a standard error of 0.25 %
        return f"weights with mean {round(mean, 4) + 0.0:.4f} and standard deviation {std:.4f}; 0 and 0.0100 wanted"
    if weight.abs().max() < 3 * std:  # of so many normal numbers, one is beyond 4
        return f"weights with none beyond {weight.abs().max() / std:.1f} standard deviations; a normal law wanted"
    return ""


def _initial_bias(bias: Tensor | None, wanted: float) -> str:
    if bias is None or (bias - wanted).abs().max() < 1e-3:
        return ""
    low, high = bias.min().item() + 0.0, bias.max().item() + 0.0  # -0.0 + 0.0 is 0.0
    got = f"{low:.4f}" if high - low < 1e-6 else f"from {low:.4f} to {high:.4f}"
    if not wanted:
        return f"bias {got}; 0 wanted"
    return f"prior: bias {got}, p = {bias.sigmoid().mean():.4f}; {wanted:.4f} and 0.0100 wanted"


def _scramble(head: nn.Module) -> None:
    """New weights and biases with which every layer passes on a signal of size one."""
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        scale = math.sqrt(2 / parameter[0].numel()) if parameter.dim() > 1 else 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def _numbers(head: nn.Module, c: int, a: int, k: int) -> list[str]:
    """Both outputs against the package's head with the same weights; where they differ, which slip explains it."""
    levels, sides = _levels(2, c), _subnets(head, _levels(1, c)[:1])[:2]
    with torch.device("meta"):  # no weights of its own
        ours = RetinaNetHead(c, a, k)
    for subnet, convs in zip((ours.classification, ours.regression), sides, strict=True):
        for mine, theirs in zip((m for m in subnet.modules() if isinstance(m, nn.Conv2d)), convs, strict=True):
            mine.load_state_dict(theirs.state_dict(), assign=True)
    with torch.no_grad():
        problems = []
        for name, x, right, convs in zip(("logits", "deltas"), head(levels), ours(levels), sides, strict=True):
            if not torch.allclose(x, right, rtol=1e-3, atol=1e-3):
                problems.append(f"{name}: {_explain(x, right, levels, convs)}")
    return problems


def _explain(x: Tensor, right: Tensor, levels: list[Tensor], convs: list[nn.Conv2d]) -> str:
    """The slip with which the package's subnet would give `x` and not `right`."""
    width = x.shape[-1]

    def same(y: Tensor) -> bool:
        return y.shape == x.shape and torch.allclose(x, y, rtol=1e-3, atol=1e-3)

    maps = [_run(level, convs, (False, True, True, True, True)) for level in levels]
    for what, rows in ORDERS.items():
        if same(torch.cat([rows(m, width) for m in maps], dim=1)):
            return f"rows in the wrong order: {what}"
    if same(torch.cat([flatten_level(m, width) for m in reversed(maps)], dim=1)):
        return "rows in the wrong order: the last level comes first"
    for what, function in AFTER.items():
        if same(function(right)):
            return f"{what} after the last convolution; it should end in the plain convolution"
    for on in itertools.product((False, True), repeat=5):  # a ReLU before each convolution, or none
        ys = [_run(level, convs, on) for level in levels]
        if same(torch.cat([flatten_level(y, width) for y in ys], dim=1)):
            wrong = [str(i + 1) for i in range(5) if on[i] != (i > 0)]
            return f"a ReLU is missing or too many before convolution {', '.join(wrong)}; it belongs before 2 to 5"
    if torch.allclose(x.flatten().sort().values, right.flatten().sort().values, rtol=1e-3, atol=1e-3):
        return "the numbers are right and stand in the wrong order"
    return f"not those of the package's head with the same weights (up to {(x - right).abs().max():.2g} off)"


def _run(x: Tensor, convs: list[nn.Conv2d], relu: Sequence[bool]) -> Tensor:
    """The convolutions one after the other, with a ReLU before those that `relu` marks."""
    for conv, on in zip(convs, relu, strict=True):
        x = conv(F.relu(x) if on else x)
    return x


AFTER: dict[str, Callable[[Tensor], Tensor]] = {"ReLU": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def _split(x: Tensor, width: int) -> Tensor:
    n, _, h, w = x.shape
    return x.reshape(n, -1, width, h, w)  # (N, A, width, H, W)


# Each map (N, A·width, H, W) flattened in a way that is often written and is not the anchors' order.
ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "a plain view or reshape mixes locations and channels": lambda x, w: x.reshape(len(x), -1, w),
    "all locations of one anchor, then the next anchor; the A anchors of a location belong together": (
        lambda x, w: _split(x, w).permute(0, 1, 3, 4, 2).reshape(len(x), -1, w)
    ),
    "the grid column by column; it goes row by row": (
        lambda x, w: _split(x, w).permute(0, 4, 3, 1, 2).reshape(len(x), -1, w)
    ),
    "channel k·A + a is taken for number k of anchor a; it is channel a·K + k": (
        lambda x, w: x.reshape(len(x), w, -1, *x.shape[2:]).permute(0, 3, 4, 2, 1).reshape(len(x), -1, w)
    ),
}


def _flow(head: nn.Module, c: int, a: int) -> list[str]:
    """That each level alone teaches both subnets, and the pyramid below it."""
    levels = [x.requires_grad_() for x in _levels(1, c)]
    sides, sizes = _subnets(head, levels[:1])[:2], [a * h * w for h, w in GRIDS]
    problems = []
    for name, out, convs in zip(NAMES, head(levels), sides, strict=True):
        unread, idle = [], []
        for i, rows in enumerate(out.split(sizes, dim=1)):
            wanted = [levels[i], *(conv.weight for conv in convs)]
            grads = torch.autograd.grad(rows.square().sum(), wanted, retain_graph=True, allow_unused=True)
            arrived = [g is not None and bool(g.any()) for g in grads]
            unread += [] if arrived[0] else [str(i + 1)]
            idle += [] if all(arrived[1:]) else [str(i + 1)]
        if idle:
            problems.append(f"gradient: level {', '.join(idle)} of {len(levels)} does not teach the whole {name}")
        elif unread:
            problems.append(f"gradient: from the {name} none reaches the features of level {', '.join(unread)}")
    return problems
