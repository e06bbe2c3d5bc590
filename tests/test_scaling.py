"""The paper's recipe at other batch sizes, against the learning rate that training really uses."""

from __future__ import annotations

import pytest

from focal_tutorial.optim import learning_rate
from focal_tutorial.scaling import scaled_recipe
from focal_tutorial.train_config import TrainConfig


def test_the_paper_is_its_own_recipe() -> None:
    recipe = scaled_recipe(16)
    assert (recipe.lr, recipe.steps, recipe.drops, recipe.warmup_steps) == (0.01, 90_000, (60_000, 80_000), 500)


@pytest.mark.parametrize("images", [2, 16, 24, 32, 128])
def test_recipe_is_what_train_does(images: int) -> None:
    """The default rate of a ResNet is the recipe's, its rate falls where the recipe says, and the run is as long."""
    recipe = scaled_recipe(images)
    assert recipe.steps * images == pytest.approx(90_000 * 16, rel=1e-3)
    config = TrainConfig(model="retinanet_resnet50_fpn", schedule="step").resolved(images, [(480, 640)])
    assert config.lr == pytest.approx(recipe.lr)

    def rate(step: int) -> float:
        return learning_rate(
            step,
            recipe.steps,
            recipe.lr,
            warmup_steps=recipe.warmup_steps,
            schedule="step",
            milestones=config.milestones,
        )

    for number, drop in enumerate(recipe.drops):
        assert rate(drop - 1) == pytest.approx(recipe.lr / 10**number)
        assert rate(drop) == pytest.approx(recipe.lr / 10 ** (number + 1))
    assert rate(0) == pytest.approx(recipe.lr / 500) and rate(499) == pytest.approx(recipe.lr)


def test_recipes_that_make_no_training_are_refused() -> None:
    with pytest.raises(ValueError, match="images_per_step: at least 1"):
        scaled_recipe(0)
    with pytest.raises(ValueError, match="within the 500 steps of warm-up"):
        scaled_recipe(1920)
    assert scaled_recipe(1920, warmup_steps=100).drops == (500, 667)
