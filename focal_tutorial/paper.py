"""The paper's tables and figures as settings of one task: what `experiment run table_1a` trains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from focal_tutorial.tables import Table

SHAPES: dict[str, Any] = {
    "num_train": 1000,
    "num_val": 300,
    "size": 128,
    "objects": (1, 1),
    "empty": 0.2,
    "distractors": (1, 5),
    "radius": (7.0, 14.0),
    "contrast": (35.0, 80.0),
    "clutter": 0.7,
}  # 1 foreground anchor to about 600 of background

# The task of all tables but the last: one small object, or none, among distractors. A fifth of the images is empty.
TASKS: dict[str, dict[str, Any]] = {
    "cpu": {
        "data": "shapes",
        "shapes": SHAPES,
        "model": {
            "builder": "retinanet_tiny", "levels": (2, 3, 4), "channels": 32, "widths": (16, 32, 64, 96),
        },
        "train": {
            "device": "cpu", "canvas": (128, 128), "steps": 1000, "batch_size": 4, "optimizer": "adamw",
            "warmup_steps": 50, "ema": 0.99, "flip": 0.0, "clip_grad": 1.0, "threads": 1,
        },
    },
    "gpu": {  # not tried yet
        "data": "shapes",
        "shapes": {**SHAPES, "num_train": 8000, "num_val": 1000, "size": 256, "objects": (2, 4),
            "distractors": (4, 20)},
        "model": {
            "builder": "retinanet_resnet18_fpn", "levels": (3, 4, 5), "sizes": (16, 32, 64), "norm": "group",
            "low_quality_iou": 0.4,  # at strides from 8 on one box in fifteen would have no anchor
        },
        "train": {
            "device": "cuda", "canvas": (256, 256), "steps": 6000, "batch_size": 16, "optimizer": "adamw",
            "warmup_steps": 200, "ema": 0.998, "flip": 0.5, "clip_grad": 1.0, "amp": "bf16", "workers": 2,
        },
    },
}  # fmt: skip

CE: dict[str, Any] = {"title": "CE", "family": "ce", "alpha": None, "gamma": 0.0}


def focal(gamma: float, alpha: float) -> dict[str, Any]:
    """Focal loss, or balanced cross entropy at γ = 0."""
    name = f"FL, γ = {gamma:g}" if gamma else "balanced CE"
    family = "focal" if gamma else "bce"
    return {"title": f"{name}, α = {alpha:g}", "family": family, "alpha": alpha, "gamma": gamma}


def star(gamma: float, beta: float) -> dict[str, Any]:
    """FL*, without α."""
    return {
        "title": f"FL*, γ = {gamma:g}, β = {beta:g}", "family": "star", "loss": "star", "gamma": gamma, "beta": beta,
    }  # fmt: skip


def ohem(batch_size: int, nms_iou: float, foreground: float | None = None, enforce: bool = False) -> dict[str, Any]:
    """Cross entropy of the `batch_size` hardest anchors an image after NMS, up to a share `foreground` of them so."""
    sampler = {"name": "ohem", "batch_size": batch_size, "nms_iou": nms_iou, "foreground_fraction": foreground}
    if enforce:
        sampler["enforce"] = True
    ratio = " 1 : 3 enforced" if enforce else " 1 : 3" if foreground else ""
    name = f"OHEM{ratio}, {batch_size}, NMS {nms_iou:g}"
    return {"title": name, "family": "ohem", "alpha": None, "gamma": 0.0, "sampler": sampler}


def key(*parts: Any) -> str:
    """A setting's name, such as "fl_0_5_0_25": parts joined, points as underscores."""
    return "_".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts).replace(".", "_")


MAIN = 5  # seeds of the settings that the text leans on


def leaned_on(setting: dict[str, Any], wanted: bool = True) -> dict[str, Any]:
    """The setting, with `MAIN` seeds if `wanted`."""
    return {**setting, "seeds": MAIN} if wanted else setting


def without(setting: dict[str, Any], *names: str) -> dict[str, Any]:
    """The setting, less what is named."""
    return {name: value for name, value in setting.items() if name not in names}


FL2 = focal(2.0, 0.25)

RATE_GRID = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
RATE_SEED = 100  # the rates are chosen with other seeds than the tables', by the AP on validation images
# The setting that a family's rate is chosen with.
RATE_SETTINGS = {
    "ce": CE, "bce": focal(0.0, 0.75), "focal": FL2, "star": star(2.0, 1.0), "ohem": ohem(128, 0.5),
}  # fmt: skip
# The best of the grid for each family; `experiment run table_rates` finds them again. The GPU's are a guess.
RATES: dict[str, dict[str, float]] = {
    "cpu": {"ce": 0.008, "bce": 0.002, "focal": 0.002, "star": 0.001, "ohem": 0.001},
    "gpu": {"ce": 0.001, "bce": 0.001, "focal": 0.001, "star": 0.001, "ohem": 0.001},
}

TABLE_1A = {"ce": leaned_on(CE)} | {
    key("bce", alpha): leaned_on(focal(0.0, alpha), alpha in (0.75, 0.9))
    for alpha in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
}
PAPER_PAIRS = ((0.5, 0.5), (1.0, 0.25), (2.0, 0.25))  # of γ and α, the paper's choice
PAIRS = (*PAPER_PAIRS, (0.5, 0.75), (1.0, 0.5), (2.0, 0.75))  # and what the validation images preferred
TABLE_1B = {name: TABLE_1A[name] for name in ("ce", "bce_0_25", "bce_0_5", "bce_0_75")} | {
    key("fl", gamma, alpha): leaned_on(focal(gamma, alpha), (gamma, alpha) in PAIRS)
    for gamma in (0.2, 0.5, 1.0, 2.0, 5.0)
    for alpha in (0.25, 0.5, 0.75)
}
PAPER_STARS = ((2.0, 0.0), (2.0, 1.0), (4.0, 0.0))  # of γ and β: the two of Table 3, and one between
FIGURE_7 = {
    "ce": TABLE_1A["ce"], "bce_0_75": TABLE_1A["bce_0_75"], "fl_2_0_25": TABLE_1B["fl_2_0_25"],
    **{
        key("star", gamma, beta): leaned_on(star(gamma, beta), (gamma, beta) in PAPER_STARS)
        for gamma in (1.0, 2.0, 4.0)
        for beta in (0.0, 1.0, 2.0)
    },
}  # fmt: skip
TABLE_3 = {name: FIGURE_7[name] for name in ("ce", "bce_0_75", "fl_2_0_25", "star_2_1", "star_4_0")}

# As a share of the anchors our smallest, 32 of 12,096, is 240 of the 90,360 of a 600 × 800 image; 128 and 512 are the
# paper's own.
TABLE_1D = {
    **{key("ohem", batch, iou): ohem(batch, iou) for iou in (0.7, 0.5) for batch in (32, 128, 512)},
    **{key("ohem13", batch, 0.5): ohem(batch, 0.5, 0.25) for batch in (32, 128, 512)},
    **{key("enforced13", batch, 0.5): ohem(batch, 0.5, 0.25, enforce=True) for batch in (32, 128)},
    "fl_2_0_25": TABLE_1B["fl_2_0_25"],
}

# Anchors, on shapes drawn out to up to three times their width: their boxes are 1 : 2.7 to 2.7 : 1.
TABLE_1C = {
    key("anchors", scales, ratios): {
        **FL2, "title": f"{scales} scale{'s' if scales > 1 else ''}, {ratios} ratio{'s' if ratios > 1 else ''}",
        "shapes": {"stretch": (1.0, 3.0)},
        "model": {
            "scales": tuple(2 ** (i / scales) for i in range(scales)),
            "ratios": (1.0,) if ratios == 1 else (0.5, 1.0, 2.0),
        },
    }
    for scales, ratios in ((1, 1), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3), (4, 3))
}  # fmt: skip

# The image larger or smaller than it is drawn, through a shallow and a deep network; anchors stay in pixels.
TABLE_1E = {
    key("canvas", canvas, "blocks", blocks): {
        **FL2, "title": f"{canvas} px, {blocks} block{'s' if blocks > 1 else ''} a stage",
        "train": {"canvas": (canvas, canvas)}, "model": {"blocks": blocks}, "measure": "time",
    }
    for blocks in (1, 4)
    for canvas in (96, 128, 160, 192)
}  # fmt: skip
TABLE_1E_RESNET = {
    key("canvas", canvas, "resnet", depth): {
        **FL2, "title": f"{canvas} px, ResNet-{depth}", "train": {"canvas": (canvas, canvas)},
        "model": {"builder": f"retinanet_resnet{depth}_fpn"}, "measure": "time",
    }
    for depth in (18, 34)
    for canvas in (192, 256, 384)
}  # fmt: skip

# Cross entropy from p = π with the paper's optimiser and heads: SGD, no norm in the subnets, nothing to catch a large
# gradient. Its rate is .01 for 16 images, .0025 for four.
SGD: dict[str, Any] = {"optimizer": "sgd", "clip_grad": 0.0, "steps": 600}
PRIOR = {
    key(name, "prior", prior, "lr", lr): {
        **loss, "title": f"{loss['title']}, π = {prior:g}, rate {lr:g}", "lr": lr, "train": SGD,
        "model": {"prior": prior, "head_norm": None},
    }
    for name, loss, rates in (("ce", CE, (0.0006, 0.0025, 0.01)), ("fl2", FL2, (0.0025,)))
    for lr in rates
    for prior in (0.5, 0.01)
}  # fmt: skip

HINGE = {
    key("hinge", margin, "lr", lr): {
        "title": f"hinge loss, margin {margin:g}, rate {lr:g}", "loss": "hinge", "margin": margin, "lr": lr,
    }
    for margin, rates in ((0.5, (0.001, 0.004, 0.016)), (1.0, (0.004,)))
    for lr in rates
} | {"ce": TABLE_1A["ce"]}  # fmt: skip

# Whether what a short training tells apart is still apart later; and where the loss of a converged model sits.
LONG: dict[str, Any] = {"longer": 2.4, "measure": "distribution"}
TABLE_LONG = {
    name: leaned_on({**{**TABLE_1B, **TABLE_1D}[name], **LONG})
    for name in ("ce", "bce_0_75", "fl_0_5_0_5", "fl_2_0_25", "ohem_128_0_5")
}
# What no anchor reaches can only be missed once the rest is found.
TABLE_1C_LONG = {
    name: {**TABLE_1C[name], "longer": LONG["longer"]}
    for name in ("anchors_1_1", "anchors_3_1", "anchors_1_3", "anchors_3_3")
}
FIGURE_4 = {name: TABLE_LONG[name] for name in ("fl_2_0_25", "ce", "fl_0_5_0_5")}

# The map: the same scenes with more or fewer objects. At these IoU thresholds 30 to 40 objects (as many as fit) make 9
# anchors to one of foreground, two objects 93, one object in a fifth of the images 930, in a twenty-fifth 4,650. (These
# are names; `focal_tutorial.advantage.count_scenes` counts the background anchors among them.)
MAP_DENSITIES: dict[str, dict[str, Any]] = {
    "9": {"objects": (30, 40), "empty": 0.0}, "93": {"objects": (2, 2), "empty": 0.0},
    "930": {"objects": (1, 1), "empty": 0.8}, "4650": {"objects": (1, 1), "empty": 0.96},
}  # fmt: skip
MAP_STEPS = (150, 450, 1350)
# One rate would favour the losses that it suits: `focal_tutorial.advantage` takes the better one in each field.
MAP_RATES = (0.002, 0.008)
MAP_LOSSES = ("ce", "bce_0_75", "fl_0_5_0_5", "fl_2_0_25")
# The GPU's scenes have four times the area, and as many anchors: fewer of them reach an object.
FINE_DENSITIES: dict[str, dict[str, Any]] = {
    "10": {"objects": (50, 60), "empty": 0.0}, "30": {"objects": (20, 22), "empty": 0.0},
    "100": {"objects": (6, 7), "empty": 0.0}, "1000": {"objects": (1, 1), "empty": 0.32},
    "5000": {"objects": (1, 1), "empty": 0.864},
}  # fmt: skip
FINE_STEPS = (250, 1000, 2500, 6000)
FINE_RATES = (0.0005, 0.002)  # a guess, as `RATES`
FINE_LOSSES = ("ce", "bce_0_75", "fl_0_5_0_5", "fl_1_0_25", "fl_2_0_25")


def map_settings(
    densities: dict[str, dict[str, Any]],
    lengths: Sequence[int],
    losses: Sequence[str],
    rates: Sequence[float],
    images: dict[str, int],
    main: Collection[tuple[str, int]] = (),
) -> dict[str, dict[str, Any]]:
    """Every loss with every density, length and rate; each image that is validated or tested on has its objects.

    `main`: the (density, length) that get more seeds.
    """
    return {
        key(name, "to", density, "steps", steps, "lr", lr): {
            **without(TABLE_1B[name], "seeds", "family"), "lr": lr,
            "title": f"{TABLE_1B[name]['title']}, 1 : {density}, {steps} steps, rate {lr:g}",
            "shapes": {**scenes, "distractors": (0, 2), **images},
            "test_shapes": {"empty": 0.0},
            "model": {"foreground_iou": 0.4, "background_iou": 0.3},
            "train": {"steps": steps},
            **leaned_on({}, (density, steps) in main),
        }
        for steps in lengths
        for density, scenes in densities.items()
        for name in losses
        for lr in rates
    }  # fmt: skip


MAP = map_settings(
    MAP_DENSITIES, MAP_STEPS, MAP_LOSSES, MAP_RATES, {"num_train": 2000, "num_val": 100, "num_test": 250},
    main=[(density, steps) for density in ("93", "930") for steps in (450, 1350)],
)  # fmt: skip
MAP_FINE = map_settings(
    FINE_DENSITIES, FINE_STEPS, FINE_LOSSES, FINE_RATES, {"num_train": 8000, "num_val": 200, "num_test": 500}
)

BCCD_TASKS: dict[str, dict[str, Any]] = {
    "cpu": {
        "data": "bccd",
        "model": {"builder": "retinanet_tiny", "sizes": (20, 40, 80)},
        "train": {
            **TASKS["cpu"]["train"], "canvas": (240, 320), "steps": 700, "flip": 0.5, "flip_vertical": 0.5,
            "clip_grad": 10.0,
        },
    },
    "gpu": {
        "data": "bccd",
        "model": {
            "builder": "retinanet_resnet18_fpn", "norm": "group", "sizes": (24, 48, 96, 192, 384),
            "low_quality_iou": 0.4,
        },
        "train": {
            **TASKS["gpu"]["train"], "canvas": (512, 672), "steps": 2000, "flip_vertical": 0.5, "scale": (0.7, 1.4),
            "colour": 0.2, "clip_grad": 10.0,
        },
    },
}  # fmt: skip
TABLE_BCCD = {
    name: without(setting, "seeds")
    for name, setting in {**TABLE_1B, **TABLE_1D}.items()
    if name in ("ce", "bce_0_75", "fl_0_5_0_5", "fl_1_0_25", "fl_2_0_25", "ohem_128_0_5")
}
RATE_CELLS = {
    key(family, rate): {**without(setting, "family"), "lr": rate}
    for family, setting in RATE_SETTINGS.items()
    for rate in RATE_GRID
}

TABLES = {
    "table_rates": Table(
        "the learning rate of each family of losses of the tables", RATE_CELLS,
        TASKS, RATES, {"cpu": 17, "gpu": 60}, 2, RATE_SEED,
    ),
    "table_1a": Table("Table 1a: α of balanced cross entropy", TABLE_1A, TASKS, RATES, {"cpu": 4, "gpu": 24}),
    "table_1b": Table("Table 1b: γ, each with its best α", TABLE_1B, TASKS, RATES, {"cpu": 11, "gpu": 57}),
    "table_3": Table("Table 3: FL*", TABLE_3, TASKS, RATES, {"cpu": 3, "gpu": 15}),
    "figure_7": Table("Figure 7: FL* over γ and β", FIGURE_7, TASKS, RATES, {"cpu": 8, "gpu": 36}),
    "table_1c": Table("Table 1c: scales and ratios of the anchors", TABLE_1C, TASKS, RATES, {"cpu": 4, "gpu": 21}),
    "table_1c_long": Table(
        "Table 1c, trained longer", TABLE_1C_LONG, TASKS, RATES, {"cpu": 5, "gpu": 30}
    ),
    "table_1e": Table(
        "Table 1e: size of the image and depth", TABLE_1E, {"cpu": TASKS["cpu"]}, RATES, {"cpu": 6}
    ),
    "table_1e_resnet": Table(
        "Table 1e: size of the image and depth, ResNets", TABLE_1E_RESNET, {"gpu": TASKS["gpu"]}, RATES, {"gpu": 25}
    ),
    "table_1d": Table("Table 1d: OHEM against focal loss", TABLE_1D, TASKS, RATES, {"cpu": 12, "gpu": 30}),
    "table_long": Table(
        "the losses of Table 1b and OHEM, trained longer", TABLE_LONG, TASKS, RATES, {"cpu": 7, "gpu": 36}
    ),
    "figure_4": Table(
        "Figure 4: where the loss of a trained model sits", FIGURE_4, TASKS, RATES, {"cpu": 4, "gpu": 22}
    ),
    "ce_prior": Table(
        "cross entropy with and without the prior, SGD", PRIOR, {"cpu": TASKS["cpu"]}, RATES, {"cpu": 3}
    ),
    "hinge": Table("the hinge loss", HINGE, TASKS, RATES, {"cpu": 3, "gpu": 15}),
    "imbalance_map": Table(
        "advantage over CE by imbalance and schedule", MAP, {"cpu": TASKS["cpu"]}, RATES, {"cpu": 40}
    ),
    "imbalance_map_fine": Table(  # not tried yet
        "the same, with more densities, schedules and losses", MAP_FINE, {"gpu": TASKS["gpu"]}, RATES, {"gpu": 250}
    ),
    "table_bccd": Table("the losses on BCCD", TABLE_BCCD, BCCD_TASKS, RATES, {"cpu": 6, "gpu": 18}),
}  # fmt: skip
