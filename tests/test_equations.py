"""Every displayed equation of the chapters that derive the losses, with its test.

`proves` binds a label to a test and to the LaTeX of the equation as the notebook displays it, so that an equation
cannot lose its label, lose its test, or change without this file seeing it. Each test compares the mathematics with
the package, with 40-digit arithmetic (mpmath) or with autograd, whichever is independent of what it checks.
The equations of chapter 4 have their tests in test_balance.py, each with the labels in its docstring.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import mpmath
import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from focal_tutorial.heads import RetinaNetHead, prior_bias
from focal_tutorial.hinge import hinge_loss
from focal_tutorial.losses import (
    balanced_cross_entropy,
    focal_loss_star,
    focal_term,
    focal_term_derivative,
    focal_term_second_derivative,
    sigmoid_focal_loss,
)

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
CHAPTERS = sorted(NOTEBOOKS.glob("0[45]_*.ipynb"))
GAMMAS = (0.0, 0.3, 0.5, 1.0, 2.0, 5.0)
LOGITS = torch.linspace(-9, 9, 37, dtype=torch.float64)
Real = mpmath.mpf
EQUATIONS: dict[str, tuple[str, Callable[[], None]]] = {}  # label → LaTeX as displayed, test


def proves(label: str, latex: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Mark a test as that of the displayed equation `label`."""

    def bind(test: Callable[[], None]) -> Callable[[], None]:
        assert label not in EQUATIONS, f"{label} has two tests"
        EQUATIONS[label] = (latex, test)
        return test

    return bind


# ---- helpers -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def forty_digits() -> object:
    with mpmath.workdps(40):
        yield


def sigma(x: Real) -> Real:
    return 1 / (1 + mpmath.exp(-x))


def ce(x: Real) -> Real:
    """-log p_t of the logit of the truth."""
    return -mpmath.log(sigma(x))


def fl(x: Real, gamma: float) -> Real:
    return (1 - sigma(x)) ** Real(gamma) * ce(x)


def exactly(function: Callable[[Real], Real], x: Tensor = LOGITS) -> Tensor:
    """The function in 40 digits at every logit, rounded once."""
    return torch.tensor([float(function(Real(v))) for v in x.tolist()], dtype=torch.float64)


def agree(got: Tensor, wanted: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=rtol, atol=1e-300)


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor = LOGITS) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


# ---- chapter 4: what test_balance.py does not have -------------------------------------------------------------------


@proves("balance-ce", r"\mathrm{CE}_\alpha(p_t) = -\,\alpha_t \log p_t ,")
def test_balanced_cross_entropy() -> None:
    plain = exactly(ce)
    for alpha in (0.25, 0.75, 0.998):
        agree(balanced_cross_entropy(LOGITS, torch.ones_like(LOGITS), alpha), alpha * plain)
        agree(balanced_cross_entropy(-LOGITS, torch.zeros_like(LOGITS), alpha), (1 - alpha) * plain)


# ---- chapter 5: the weight and the loss -----------------------------------------------------------------------------


@proves(
    "eq-5-truth",
    r"""p_t = \begin{cases} p & \text{if } y = +1 \\ 1 - p & \text{if } y = -1 \end{cases}
    \;=\; \sigma(x_t), \qquad x_t = y\,x .""",
)
def test_probability_of_the_truth() -> None:
    for y in (1, -1):
        by_cases = exactly(lambda x, y=y: sigma(x) if y == 1 else 1 - sigma(x))
        agree(torch.sigmoid(y * LOGITS), by_cases)
        loss = sigmoid_focal_loss(LOGITS, torch.full_like(LOGITS, (1 + y) / 2), None, 0.0)
        agree(torch.exp(-loss), by_cases)


@proves("eq-5-ce", r"\mathrm{CE}(p_t) = -\log p_t .")
def test_cross_entropy() -> None:
    wanted = exactly(ce)
    agree(focal_term(LOGITS, 0.0), wanted)
    for y in (1, -1):
        target = torch.full_like(LOGITS, (1 + y) / 2)
        torch_has = F.binary_cross_entropy_with_logits(y * LOGITS, target, reduction="none")
        torch.testing.assert_close(torch_has, wanted, rtol=1e-9, atol=0)


@proves("eq-5-weighted", r"L(p_t) = w(p_t)\,\bigl(-\log p_t\bigr) ,")
def test_weighted_cross_entropy() -> None:
    p, ones = torch.sigmoid(LOGITS), torch.ones_like(LOGITS)
    plain = -torch.log(p)
    agree(1.0 * plain, focal_term(LOGITS, 0.0), 1e-9)
    agree(0.75 * plain, balanced_cross_entropy(LOGITS, ones, 0.75), 1e-9)
    for gamma in GAMMAS:
        agree((1 - p) ** gamma * plain, focal_term(LOGITS, gamma), 1e-9)


@proves("eq-5-knob", r"w_{a+b}(p_t) = w_a(p_t)\,w_b(p_t), \qquad w_0(p_t) = 1 .")
def test_the_knob_adds_up() -> None:
    def weight(gamma: float) -> Tensor:
        return focal_term(LOGITS, gamma) / focal_term(LOGITS, 0.0)

    for a, b in ((0.5, 1.5), (2.0, 3.0), (0.0, 2.0), (0.3, 0.3)):
        agree(weight(a + b), weight(a) * weight(b))
    agree(weight(0.0), torch.ones_like(LOGITS))
    # A step has no such knob (its square is itself), nor has FL* with gamma for the knob.
    step = (LOGITS < 0).double()
    assert torch.equal(step * step, step)
    star = {g: focal_loss_star(LOGITS, torch.ones_like(LOGITS), g, 0.0) / focal_term(LOGITS, 0.0) for g in (2.0, 4.0)}
    assert (star[2.0] ** 2 - star[4.0]).abs().max() > 0.05


@proves("eq-5-power", r"w_\gamma(p_t) = (1 - p_t)^{\gamma} .")
def test_power_of_the_error() -> None:
    for gamma in GAMMAS:
        weight = focal_term(LOGITS, gamma) / focal_term(LOGITS, 0.0)
        agree(weight, exactly(lambda x, g=gamma: (1 - sigma(x)) ** Real(g)))
        if gamma > 0:  # the wishes: 1 for hard, 0 for easy, never rising
            far = torch.tensor([-60.0, 300.0], dtype=torch.float64)
            ends = focal_term(far, gamma) / focal_term(far, 0.0)
            assert ends[0] == pytest.approx(1) and ends[1] < 1e-30
            assert (weight.diff() < 0).all()


@proves("eq-5-focal", r"\mathrm{FL}(p_t) = -(1 - p_t)^{\gamma}\,\log p_t , \qquad \gamma \ge 0 .")
def test_focal_loss() -> None:
    for gamma in GAMMAS:
        wanted = exactly(lambda x, g=gamma: fl(x, g))
        agree(focal_term(LOGITS, gamma), wanted)
        agree(sigmoid_focal_loss(LOGITS, torch.ones_like(LOGITS), None, gamma), wanted)
        agree(sigmoid_focal_loss(-LOGITS, torch.zeros_like(LOGITS), None, gamma), wanted)


@proves("eq-5-factor", r"\frac{\mathrm{CE}(p_t)}{\mathrm{FL}(p_t)} = (1 - p_t)^{-\gamma} .")
def test_reduction_factor() -> None:
    for gamma in GAMMAS:
        ratio = focal_term(LOGITS, 0.0) / focal_term(LOGITS, gamma)
        agree(ratio, exactly(lambda x, g=gamma: (1 - sigma(x)) ** -Real(g)))
    p = torch.tensor([0.9, 1 - 1000**-0.5, 0.5], dtype=torch.float64)
    factors = focal_term(p.logit(), 0.0) / focal_term(p.logit(), 2.0)
    agree(factors, torch.tensor([100.0, 1000.0, 4.0]), 1e-9)
    assert p[1] == pytest.approx(0.968, abs=5e-4)
    hard = torch.linspace(0.001, 0.499, 100, dtype=torch.float64).logit()
    assert (focal_term(hard, 0.0) / focal_term(hard, 2.0) < 4).all()  # at most 4, and 4 only at 0.5


# ---- chapter 5: the gradient ----------------------------------------------------------------------------------------


@proves("eq-5-sigmoid", r"\frac{dp_t}{dx_t} = p_t\,(1 - p_t) ,")
def test_slope_of_the_sigmoid() -> None:
    agree(exactly(lambda x: mpmath.diff(sigma, x)), exactly(lambda x: sigma(x) * (1 - sigma(x))))
    p = torch.sigmoid(LOGITS)
    torch.testing.assert_close(gradient(torch.sigmoid), p * (1 - p))


@proves(
    "eq-5-ce-slope",
    r"\frac{d\,\mathrm{CE}}{dx_t} = -\frac{1}{p_t}\,\frac{dp_t}{dx_t} = p_t - 1 .",
)
def test_slope_of_cross_entropy() -> None:
    middle = exactly(lambda x: -mpmath.diff(sigma, x) / sigma(x))
    right = exactly(lambda x: sigma(x) - 1)
    agree(exactly(lambda x: mpmath.diff(ce, x)), right)
    agree(middle, right)
    agree(focal_term_derivative(LOGITS, 0.0), right)
    for y in (1.0, -1.0):  # the paper's equation 9: by the logit itself it is y times this
        target = torch.full_like(LOGITS, (1 + y) / 2)
        slope = gradient(lambda x, t=target: sigmoid_focal_loss(x, t, None, 0.0))
        torch.testing.assert_close(slope, y * (torch.sigmoid(y * LOGITS) - 1))


@proves(
    "eq-5-product",
    r"""\frac{dL}{dx_t} = \underbrace{w(p_t)\,(p_t - 1)}_{\text{weight} \times \text{slope}}
    \;+\; \underbrace{w'(p_t)\,p_t\,(1 - p_t)\,(-\log p_t)}_{\text{slope of the weight} \times \text{loss}} .""",
)
def test_product_rule_for_any_weight() -> None:
    weights: list[Callable[[Real], Real]] = [
        lambda p: (1 - p) ** 2,
        lambda p: mpmath.sqrt(1 - p),
        lambda p: (1 + mpmath.cos(mpmath.pi * p)) / 2,
        lambda p: mpmath.exp(-3 * p),
    ]
    for w in weights:

        def formula(x: Real, w: Callable[[Real], Real] = w) -> Real:
            p = sigma(x)
            return w(p) * (p - 1) + mpmath.diff(w, p) * p * (1 - p) * -mpmath.log(p)

        truth = exactly(lambda x, w=w: mpmath.diff(lambda z: w(sigma(z)) * ce(z), x))
        agree(exactly(formula), truth, 1e-10)


@proves(
    "eq-5-derivative",
    r"\frac{d\,\mathrm{FL}}{dx_t} = (1 - p_t)^{\gamma}\,\bigl(\gamma\,p_t \log p_t + p_t - 1\bigr) .",
)
def test_derivative_of_focal_loss() -> None:
    for gamma in GAMMAS:

        def formula(x: Real, g: float = gamma) -> Real:
            p = sigma(x)
            return (1 - p) ** Real(g) * (g * p * mpmath.log(p) + p - 1)

        wanted = exactly(formula)
        agree(exactly(lambda x, g=gamma: mpmath.diff(lambda z: fl(z, g), x)), wanted)
        agree(focal_term_derivative(LOGITS, gamma), wanted)
        for y in (1.0, -1.0):  # the paper's equation 10
            target = torch.full_like(LOGITS, (1 + y) / 2)
            agree(y * gradient(lambda x, g=gamma, y=y, t=target: sigmoid_focal_loss(y * x, t, None, g)) * y, wanted)
            by_logit = gradient(lambda x, g=gamma, t=target: sigmoid_focal_loss(x, t, None, g), y * LOGITS)
            agree(by_logit, y * wanted)
        assert focal_term_derivative(torch.tensor(-1e4), gamma) == -1  # the worst mistakes keep their pull


@proves(
    "eq-5-gradient-weight",
    r"""g(p_t) = \frac{d\,\mathrm{FL}/dx_t}{d\,\mathrm{CE}/dx_t}
    = (1 - p_t)^{\gamma} \;+\; \gamma\,p_t\,(1 - p_t)^{\gamma - 1}\,(-\log p_t) .""",
)
def test_weight_on_the_gradient() -> None:
    for gamma in GAMMAS:

        def formula(x: Real, g: float = gamma) -> Real:
            p = sigma(x)
            return (1 - p) ** Real(g) + g * p * (1 - p) ** Real(g - 1) * -mpmath.log(p)

        ratio = focal_term_derivative(LOGITS, gamma) / focal_term_derivative(LOGITS, 0.0)
        agree(ratio, exactly(formula))
        if gamma > 0:
            assert ratio.max() > 1  # hard examples gain
            assert (ratio >= focal_term(LOGITS, gamma) / focal_term(LOGITS, 0.0)).all()


@proves("eq-5-easy-end", r"g(p_t) \approx (1 + \gamma)\,(1 - p_t)^{\gamma} \qquad \text{for } p_t \to 1 .")
def test_weight_on_the_gradient_of_easy_examples() -> None:
    easy = torch.tensor([2.0, 6.0, 12.0, 24.0], dtype=torch.float64)
    for gamma in GAMMAS:
        weight = focal_term_derivative(easy, gamma) / focal_term_derivative(easy, 0.0)
        error = (weight / ((1 + gamma) * torch.sigmoid(-easy) ** gamma) - 1).abs()
        assert (error.diff() <= 0).all() and error[-1] < 1e-9


@proves(
    "eq-5-curvature",
    r"\frac{d^2\mathrm{FL}}{dx_t^2} = p_t\,q^{\gamma}\,"
    r"\Bigl[(1 + 2\gamma)\,q + \gamma\,(\gamma p_t - q)\,(-\log p_t)\Bigr] .",
)
def test_second_derivative_and_where_it_is_negative() -> None:
    for gamma in GAMMAS:

        def formula(x: Real, g: float = gamma) -> Real:
            p = sigma(x)
            q = 1 - p
            return p * q ** Real(g) * ((1 + 2 * Real(g)) * q + g * (g * p - q) * -mpmath.log(p))

        wanted = exactly(formula)
        truth = exactly(lambda x, g=gamma: mpmath.diff(lambda z: fl(z, g), x, 2))
        agree(wanted, truth, 1e-9)
        agree(focal_term_second_derivative(LOGITS, gamma), wanted, 1e-11)
        far = focal_term_second_derivative(torch.tensor([-600.0], dtype=torch.float64), max(gamma, 0.01 * (gamma > 0)))
        assert (far < 0) == (gamma > 0)  # convex at gamma 0 alone
    small = focal_term_second_derivative(torch.tensor([-150.0], dtype=torch.float64), 0.01)
    assert small < 0  # any gamma above 0, far enough out


# ---- chapter 5: alpha, FL*, Huber ------------------------------------------------------------------------------------


@proves(
    "eq-5-alpha",
    r"""\mathrm{FL}(p_t) = -\alpha_t\,(1 - p_t)^{\gamma}\,\log p_t , \qquad
    \alpha_t = \begin{cases} \alpha & \text{if } y = +1 \\ 1 - \alpha & \text{if } y = -1 \end{cases}""",
)
def test_balanced_focal_loss() -> None:
    for gamma in GAMMAS:
        plain = exactly(lambda x, g=gamma: fl(x, g))
        agree(sigmoid_focal_loss(LOGITS, torch.ones_like(LOGITS), 0.25, gamma), 0.25 * plain)
        agree(sigmoid_focal_loss(-LOGITS, torch.zeros_like(LOGITS), 0.25, gamma), 0.75 * plain)


@proves(
    "eq-5-balance",
    r"\alpha\,G_+ = (1 - \alpha)\,G_- \quad\Longleftrightarrow\quad \alpha = \frac{G_-}{G_+ + G_-} .",
)
def test_balancing_alpha() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(101, generator=generator, dtype=torch.float64)
    target = (torch.arange(101) < 4).double()
    for gamma in GAMMAS:
        pull = focal_term_derivative((2 * target - 1) * x, gamma).abs()
        up, down = pull[target == 1].sum(), pull[target == 0].sum()
        alpha = (down / (up + down)).item()
        of_loss = gradient(lambda z, a=alpha, g=gamma: sigmoid_focal_loss(z, target, a, g), x)
        assert of_loss[target == 1].sum() == pytest.approx(-of_loss[target == 0].sum().item())
        shifted = gradient(lambda z, a=alpha, g=gamma: sigmoid_focal_loss(z, target, 0.9 * a, g), x)
        assert abs(shifted.sum()) > 1e-3 * shifted.abs().sum()


@proves("eq-5-star-p", r"p^*_t = \sigma(\gamma x_t + \beta) ,")
def test_squeezed_probability() -> None:
    for gamma, beta in ((2.0, 1.0), (4.0, 0.0), (0.7, -1.0)):
        loss = focal_loss_star(LOGITS, torch.ones_like(LOGITS), gamma, beta)
        agree(torch.exp(-gamma * loss), exactly(lambda x, g=gamma, b=beta: sigma(g * x + b)), 1e-9)


@proves("eq-5-star", r"\mathrm{FL}^* = -\frac{\log p^*_t}{\gamma} ,")
def test_focal_loss_star() -> None:
    for gamma, beta in ((2.0, 1.0), (4.0, 0.0), (0.7, -1.0)):
        wanted = exactly(lambda x, g=gamma, b=beta: ce(g * x + b) / g)
        agree(focal_loss_star(LOGITS, torch.ones_like(LOGITS), gamma, beta), wanted)
        agree(focal_loss_star(-LOGITS, torch.zeros_like(LOGITS), gamma, beta), wanted)
    agree(focal_loss_star(LOGITS, torch.ones_like(LOGITS), 1.0, 0.0), exactly(ce))  # off at gamma 1, beta 0


@proves("eq-5-star-slope", r"\frac{d\,\mathrm{FL}^*}{dx} = y\,(p^*_t - 1) .")
def test_slope_of_focal_loss_star() -> None:
    for gamma, beta in ((2.0, 1.0), (4.0, 0.0), (0.7, -1.0)):
        for y in (1.0, -1.0):
            target = torch.full_like(LOGITS, (1 + y) / 2)
            got = gradient(lambda x, g=gamma, b=beta, t=target: focal_loss_star(x, t, g, b))
            agree(got, exactly(lambda x, g=gamma, b=beta, y=y: y * (sigma(g * y * x + b) - 1)))


@proves("eq-5-huber", r"w_{\mathrm{Huber}}(r) = \min\!\left(1, \frac{\delta}{|r|}\right) .")
def test_weight_of_huber() -> None:
    r = torch.linspace(-5, 5, 40, dtype=torch.float64)
    zero = torch.zeros_like(r)
    for delta in (0.5, 1.0, 2.0):
        pull = gradient(lambda x, d=delta: F.huber_loss(x, zero, reduction="none", delta=d), r)
        squared = gradient(lambda x: 0.5 * x**2, r)
        agree(pull / squared, torch.clamp(delta / r.abs(), max=1.0))


# ---- chapter 5: the prior and the hinge ------------------------------------------------------------------------------


@proves("eq-5-prior", r"\sigma(b) = \pi \quad\Longleftrightarrow\quad b = -\log\frac{1 - \pi}{\pi} .")
def test_prior_and_bias() -> None:
    for prior in (0.01, 0.2, 0.5, 1e-4):
        b = float(-mpmath.log((1 - Real(prior)) / Real(prior)))
        assert prior_bias(prior) == pytest.approx(b, abs=1e-12)
        assert float(sigma(Real(b))) == pytest.approx(prior, rel=1e-12)
    head = RetinaNetHead(4, 3, 5, channels=4, depth=1, prior=0.01)
    assert torch.allclose(head.classification.predict.bias.sigmoid(), torch.tensor(0.01))
    assert prior_bias(0.01) == pytest.approx(-4.5951, abs=5e-5)


@proves(
    "eq-5-initial",
    r"L_0 = \frac{1}{N_+}\Bigl[\alpha\,N_+\,\ell(b) + (1 - \alpha)\,N_-\,\ell(-b)\Bigr] ,",
)
def test_first_loss() -> None:
    def formula(anchors: int, classes: int, objects: int, prior: float, gamma: float, alpha: float | None) -> float:
        b = torch.tensor(prior, dtype=torch.float64).logit()
        few, many = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        negatives = anchors * classes - objects
        terms = few * objects * focal_term(b, gamma) + many * negatives * focal_term(-b, gamma)
        return (terms / objects).item()

    labels = torch.full((500,), -1)
    labels[:7] = torch.arange(7) % 4
    for prior, gamma, alpha in ((0.01, 2.0, 0.25), (0.01, 0.0, None), (0.5, 0.0, None), (0.5, 2.0, 0.25)):
        logits = torch.full((500, 4), prior, dtype=torch.float64).logit()
        loss = sigmoid_focal_loss(logits, labels, alpha, gamma, "sum", normalizer=7.0)
        assert loss.item() == pytest.approx(formula(500, 4, 7, prior, gamma, alpha))
    # The figures for 800 x 1344 pixels, 80 classes, 30 objects.
    assert formula(201_600, 80, 30, 0.01, 2.0, 0.25) == pytest.approx(1.534, abs=5e-4)
    assert formula(201_600, 80, 30, 0.01, 0.0, None) == pytest.approx(5407.7, abs=0.05)
    assert formula(201_600, 80, 30, 0.5, 0.0, None) == pytest.approx(372_636, abs=0.5)


@proves("eq-5-hinge", r"H(p_t) = \max(0,\; m - p_t) ,")
def test_hinge() -> None:
    for m in (0.5, 0.8, 1.0):
        wanted = exactly(lambda x, m=m: max(Real(0), Real(m) - sigma(x)))
        for y in (1.0, -1.0):
            got = hinge_loss(y * LOGITS, torch.full_like(LOGITS, (1 + y) / 2), margin=m)
            torch.testing.assert_close(got, wanted)


@proves(
    "eq-5-hinge-slope",
    r"""\frac{dH}{dx_t} = \begin{cases} -p_t\,(1 - p_t) & \text{if } p_t < m \\ 0 & \text{if } p_t > m \end{cases}""",
)
def test_slope_of_the_hinge() -> None:
    p = torch.sigmoid(LOGITS)
    for m in (0.4, 0.8, 1.0):
        got = gradient(lambda x, m=m: hinge_loss(x, torch.ones_like(x), margin=m))
        torch.testing.assert_close(got, torch.where(p < m, -p * (1 - p), 0.0))
        below = p < m  # relative to cross entropy: the weight p_t
        torch.testing.assert_close((got / focal_term_derivative(LOGITS, 0.0))[below], p[below])


@proves("eq-5-climb", r"T = \int_{b}^{0} \frac{dx}{|L'(x)|} .")
def test_time_to_even_odds() -> None:
    b = -mpmath.log(99)
    cases: list[tuple[Callable[[Real], Real], Callable[[Tensor], Tensor], Real]] = [  # 1 / |L'|, loss, T by hand
        (lambda x: 1 / (1 - sigma(x)), lambda x: focal_term(x, 0.0), 1 - b - mpmath.exp(b)),
        (
            lambda x: 1 / (sigma(x) * (1 - sigma(x))),
            lambda x: hinge_loss(x, torch.ones_like(x), margin=0.5),
            mpmath.exp(-b) - 2 * b - mpmath.exp(b),
        ),
    ]
    for integrand, loss, by_hand in cases:
        with mpmath.workdps(15):
            assert mpmath.almosteq(mpmath.quad(integrand, [b, -2, 0]), by_hand, rel_eps=1e-10)
        x, steps = torch.tensor([float(b)], dtype=torch.float64), 200
        for _ in range(steps):  # let the logit follow its gradient for that long: it must arrive at even odds
            half = x - gradient(loss, x) * float(by_hand) / steps / 2
            x = x - gradient(loss, half) * float(by_hand) / steps
        assert x.abs() < 0.01


# ---- nothing displayed without a label, no label without a test ----------------------------------------------------


def displayed(markdown: str) -> list[tuple[str, str | None]]:
    """LaTeX and label (None without one) of every displayed equation, in order."""
    markdown = re.sub(r"^(```+)(?!\{math\})[^\n]*python.*?^\1\s*$", "", markdown, flags=re.M | re.S)
    found: list[tuple[int, str, str | None]] = []
    for match in re.finditer(r"\$\$(.+?)\$\$(?:[ \t]*\(([\w-]+)\))?", markdown, re.S):
        found.append((match.start(), match[1], match[2]))
    for match in re.finditer(r"^(:::+|```+)\{math\}(.*?)^\1", markdown, re.M | re.S):
        label = re.search(r"^:label:\s*(\S+)", match[2], re.M)
        body = re.sub(r"^:\w+:.*$", "", match[2], flags=re.M)
        found.append((match.start(), body, label[1] if label else None))
    for match in re.finditer(r"\\\[(.+?)\\\]|\\begin\{(equation|align|gather)\*?\}.*?\\end\{\2\*?\}", markdown, re.S):
        if not any(match[0] in body for _, body, _ in found):
            found.append((match.start(), match[0], None))
    return [(latex, label) for _, latex, label in sorted(found, key=lambda item: item[0])]


def squeeze(latex: str) -> str:
    return re.sub(r"\s+", "", latex)


def problems(equations: list[tuple[str, str | None]], known: dict[str, str | None]) -> list[str]:
    """What is wrong with a chapter's equations, given label → LaTeX of the tested ones (None: not kept)."""
    found = []
    for latex, label in equations:
        if label is None:
            found.append(f"no label: {latex.strip()}")
        elif label not in known:
            found.append(f"no test: {label}")
        elif squeeze(known[label] or latex) != squeeze(latex):
            found.append(f"{label} is not the equation that its test is for: change both")
    labels = [label for _, label in equations]
    found += [f"used twice: {label}" for label in {*labels} if label is not None and labels.count(label) > 1]
    return found


def named_in_docstrings(path: Path) -> dict[str, str]:
    """Label → test, for tests whose docstring says `Chapter 4, equation LABEL`."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            words = ast.get_docstring(node) or ""
            if re.match(r"Chapter \d+, equations? ", words):
                found.update(dict.fromkeys(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", words), node.name))
    return found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_displayed_equation_has_a_label_and_a_test(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    equations = displayed(text)
    elsewhere = named_in_docstrings(ROOT / "tests" / "test_balance.py")
    known: dict[str, str | None] = {**dict.fromkeys(elsewhere), **{k: latex for k, (latex, _) in EQUATIONS.items()}}
    assert equations and problems(equations, known) == []
    for _, label in equations:
        assert label is not None
        print(f"{label:26} {EQUATIONS[label][1].__name__ if label in EQUATIONS else elsewhere[label]}")


def test_every_test_of_an_equation_is_collected_and_of_an_equation_that_is_there() -> None:
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in CHAPTERS)
    for label, (_, test) in EQUATIONS.items():
        assert test.__name__.startswith("test_") and globals()[test.__name__] is test
        assert label == "balance-ce" or f"$$ ({label})" in text, f"{label} is displayed nowhere"


def test_the_check_sees_what_it_must_see() -> None:
    text = (
        "$$\na = b\n$$ (eq-x)\n\nText $$c$$ and\n\n```{math}\n:label: eq-y\nd = e\n```\n\n\\begin{align}f\\end{align}"
    )
    found = displayed(text)
    assert [label for _, label in found] == ["eq-x", None, "eq-y", None]
    known: dict[str, str | None] = {"eq-x": "a=b", "eq-y": "d = -e"}
    seen = problems(found, known)
    assert [line.split(":")[0].split(" is")[0] for line in seen] == ["no label", "eq-y", "no label"]
    assert problems([("a = b", "eq-x"), ("a=b", "eq-x")], known) == ["used twice: eq-x"]
    assert problems([("z", "eq-z")], known) == ["no test: eq-z"]
    assert problems([("z", "eq-z")], {"eq-z": None}) == []
