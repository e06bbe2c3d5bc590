"""The paper's recipe at other batch sizes: what several GPUs change in the learning rate and the number of steps."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_IMAGES, PAPER_RATE, PAPER_STEPS = 16, 0.01, 90_000  # images a step, learning rate, steps
WARMUP_STEPS = 500  # of Detectron, the paper's code; the paper does not mention any


@dataclass(frozen=True)
class Recipe:
    """A training as long as the paper's, counted in images.

    Attributes:
        images_per_step: of the global batch: batch size × accumulated batches × processes.
        lr: peak learning rate.
        steps: updates of the weights.
        drops: the steps from which the rate is a tenth of what it was before.
        warmup_steps: in which the rate rises to `lr`.
    """

    images_per_step: int
    lr: float
    steps: int
    drops: tuple[int, int]
    warmup_steps: int


def scaled_recipe(images_per_step: int, *, warmup_steps: int = WARMUP_STEPS) -> Recipe:
    """The paper's recipe for another batch, by the linear scaling rule: k times the images, k times the rate.

    lr = 0.01 · k and steps = 90,000 / k with k = images_per_step / 16, so that a run sees as many images. The warm-up
    keeps its length in steps: it is there for the first updates, and the rate that it rises to is k times as high. The
    drops keep their place in the run, which is how `TrainConfig.milestones` gives them.

    Args:
        images_per_step: images an update of the weights sees, over all processes.
        warmup_steps: steps in which the rate rises.

    Raises:
        ValueError: for less than one image, or so many that the warm-up does not end before the first drop.

    Source: RetinaNet paper §4.1 for the recipe; Goyal et al. 2017 §2.1 for the rule. Whether it holds for RetinaNet at
    128 images a step has not been tried for this book.
    """
    if images_per_step < 1:
        raise ValueError(f"images_per_step: at least 1 wanted, got {images_per_step}")
    k = images_per_step / PAPER_IMAGES
    steps = round(PAPER_STEPS / k)
    first, second = -(-2 * steps // 3), -(-8 * steps // 9)  # 60,000 and 80,000 of 90,000, rounded up
    if first <= warmup_steps:
        raise ValueError(
            f"images_per_step: at {images_per_step} the rate would fall at step {first}, within the {warmup_steps} "
            "steps of warm-up; take a smaller batch or a shorter warm-up"
        )
    return Recipe(images_per_step, PAPER_RATE * k, steps, (first, second), warmup_steps)
