"""Planning and drawing one synthetic scene, by signed distances and numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CLASSES = ("circle", "square", "triangle")
DISTRACTORS = ("ring", "cross", "half-moon", "frame", "chevron")


@dataclass(frozen=True)
class ShapesConfig:
    """What the scenes are like.

    Attributes:
        size: side of the square image in pixels.
        seed: of everything; the same seed gives the same images.
        objects: fewest and most objects in an image that is not empty.
        radius: smallest and largest circumscribed radius of an object or distractor, in pixels.
        distractors: fewest and most shapes in an image that belong to no class.
        contrast: smallest and largest difference between a shape and its surroundings, in grey levels
            (0…255).
        clutter: strength of the background's texture, strokes and noise; 0 is a plain background, 1 the
            default.
        empty: fraction of images without objects, 0…1 (distractors stay).
        classes: which classes there are, from circle, square, triangle.
        stretch: smallest and largest factor, from 1 on, by which a shape is longer along one of its axes than across
            it; the axis of a square or triangle goes through a corner. The area stays. At (1, 1) nothing is drawn out.
    """

    size: int = 192
    seed: int = 0
    objects: tuple[int, int] = (1, 3)
    radius: tuple[float, float] = (7.0, 20.0)
    distractors: tuple[int, int] = (3, 10)
    contrast: tuple[float, float] = (18.0, 55.0)
    clutter: float = 1.0
    empty: float = 0.0
    classes: tuple[str, ...] = CLASSES
    stretch: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("objects", "distractors", "radius", "contrast", "classes", "stretch"):
            if isinstance(getattr(self, name), list):  # as from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("objects", "distractors", "radius", "contrast", "stretch"):
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                raise ValueError(f"{name} must be (low, high) with 0 <= low <= high, got {pair!r}")
        if self.stretch[0] < 1:
            raise ValueError(f"stretch must be at least 1, got {self.stretch!r}")
        if self.radius[0] < 2 or self.size < 2 * self.radius[1] * math.sqrt(self.stretch[1]) + 4:
            raise ValueError(
                f"radius must be at least 2 and fit, drawn out by stretch, the image of {self.size} pixels, "
                f"got {self.radius!r}"
            )
        if not 0 <= self.empty <= 1 or self.clutter < 0:
            raise ValueError(f"want 0 <= empty <= 1 and clutter >= 0, got {self.empty!r} and {self.clutter!r}")
        if not self.classes or not set(self.classes) <= set(CLASSES) or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be distinct names out of {CLASSES}, got {self.classes!r}")


@dataclass(frozen=True)
class Item:
    """One shape of a scene; `label` is None for a distractor. `radius` is that of the circumscribed
    circle before the shape is drawn out: by √stretch along its axis, which `angle` turns, and by 1/√stretch across."""

    kind: str
    label: int | None
    x: float
    y: float
    radius: float
    angle: float
    colour: tuple[float, float, float]  # difference to the background, in grey levels
    stretch: float = 1.0

    @property
    def reach(self) -> float:
        """Radius in pixels of a circle around (x, y) that holds the shape."""
        return self.radius * math.sqrt(self.stretch)

    def box(self) -> tuple[float, float, float, float]:
        """The tight box, xyxy in pixels, from the shape's geometry."""
        if self.kind == "circle":
            half = (self.radius, self.radius) if self.stretch == 1 else self._ellipse()
            corners = [half, (-half[0], -half[1])]
        else:
            count = {"square": 4, "triangle": 3}[self.kind]
            turns = [self.angle + 2 * math.pi * k / count for k in range(count)]
            corners = [(self.radius * math.cos(t), self.radius * math.sin(t)) for t in turns]
            if self.stretch != 1:  # not at 1, where rounding would change the last digits of the book's boxes
                corners = [self._drawn_out(*corner) for corner in corners]
        xs, ys = [self.x + dx for dx, _ in corners], [self.y + dy for _, dy in corners]
        return min(xs), min(ys), max(xs), max(ys)

    def _ellipse(self) -> tuple[float, float]:
        """Half the width and height of the drawn-out circle."""
        cos, sin, long = math.cos(self.angle), math.sin(self.angle), math.sqrt(self.stretch)
        return self.radius * math.hypot(long * cos, sin / long), self.radius * math.hypot(long * sin, cos / long)

    def _drawn_out(self, dx: float, dy: float) -> tuple[float, float]:
        """Where a point of the shape as it was comes to lie, both relative to the centre."""
        cos, sin, long = math.cos(self.angle), math.sin(self.angle), math.sqrt(self.stretch)
        along, across = (dx * cos + dy * sin) * long, (dy * cos - dx * sin) / long
        return along * cos - across * sin, along * sin + across * cos


@dataclass(frozen=True)
class Scene:
    """Everything in one image, and the seed of its texture."""

    items: tuple[Item, ...]
    texture_seed: tuple[int, ...]


def plan_scene(config: ShapesConfig, split: int, index: int) -> Scene:
    """What stands where in image `index`; takes no drawing."""
    rng = np.random.default_rng([config.seed, split, index])
    empty = rng.random() < config.empty
    num_objects = 0 if empty else int(rng.integers(config.objects[0], config.objects[1] + 1))
    num_distractors = int(rng.integers(config.distractors[0], config.distractors[1] + 1))
    items: list[Item] = []
    for position in range(num_objects + num_distractors):
        label = int(rng.integers(len(config.classes))) if position < num_objects else None
        kind = config.classes[label] if label is not None else DISTRACTORS[int(rng.integers(len(DISTRACTORS)))]
        radius = float(rng.uniform(*config.radius))
        # Nothing is drawn for (1, 1): another random number would change every scene.
        stretch = 1.0 if config.stretch == (1, 1) else float(rng.uniform(*config.stretch))
        place = _free_place(config, rng, radius * math.sqrt(stretch), items)
        if place is not None:  # a crowded scene has fewer
            colour = _colour(config, rng)
            items.append(Item(kind, label, *place, radius, float(rng.uniform(0, 2 * math.pi)), colour, stretch))
    return Scene(tuple(items), (config.seed, split, index, 1))


def _free_place(
    config: ShapesConfig, rng: np.random.Generator, reach: float, items: list[Item]
) -> tuple[float, float] | None:
    """A centre at which the shape is inside the image and its circle apart from all others."""
    for x, y in rng.uniform(reach + 1, config.size - reach - 1, size=(40, 2)).tolist():
        if all((x - o.x) ** 2 + (y - o.y) ** 2 > (reach + o.reach + 1) ** 2 for o in items):
            return x, y
    return None


def _colour(config: ShapesConfig, rng: np.random.Generator) -> tuple[float, float, float]:
    """Lighter or darker than the ground by `contrast`, with a tint that does not tell the class."""
    strength = rng.uniform(*config.contrast) * (1 if rng.random() < 0.5 else -1)
    tint = rng.uniform(0.6, 1.0, size=3)
    red, green, blue = (strength * tint / tint.mean()).tolist()
    return red, green, blue


def draw_scene(config: ShapesConfig, scene: Scene) -> np.ndarray:
    """The image, uint8 (H, W, 3)."""
    rng = np.random.default_rng(scene.texture_seed)
    image = _background(config, rng)  # (H, W, 3)
    for item in scene.items:
        _draw(image, item, rng)
    image += 3.0 * config.clutter * _window(rng, config.size)[:, :, None]  # sensor noise lies over everything
    return image.clip(0, 255).astype(np.uint8)


def _background(config: ShapesConfig, rng: np.random.Generator) -> np.ndarray:
    """A tinted ground with slow shading, texture at two grains, and strokes."""
    size, clutter = config.size, config.clutter
    base = rng.uniform(95, 160) + rng.uniform(-18, 18, size=3)
    image = np.empty((size, size, 3), dtype=np.float32)
    shade = 16 * _smooth(rng, size, 4) + 9 * _smooth(rng, size, 14) + 5 * _window(rng, size, grain=2)
    image[:] = clutter * shade[:, :, None]
    image += (base + 6 * clutter * rng.standard_normal(3)).astype(np.float32)
    for _ in range(round(7 * clutter)):
        _stroke(image, rng)
    return image


def _smooth(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Noise on a coarse grid, interpolated; about unit variance at the nodes. (H, W)"""
    grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    low, weight = _interpolation(size, cells)
    rows = grid[low] * (1 - weight[:, None]) + grid[low + 1] * weight[:, None]  # (H, cells + 1)
    return rows[:, low] * (1 - weight) + rows[:, low + 1] * weight


@lru_cache(maxsize=16)
def _interpolation(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    place = (np.arange(size) + 0.5) * cells / size
    low = np.minimum(place.astype(np.int64), cells - 1)
    t = place - low
    return low, (t * t * (3 - 2 * t)).astype(np.float32)


@lru_cache(maxsize=4)
def _noise(grain: int) -> np.ndarray:
    """A sheet of unit noise to cut windows from: fresh noise for each image would take most of the time."""
    noise = np.random.default_rng(grain).standard_normal((1024, 1024)).astype(np.float32)
    for _ in range(grain - 1):
        right, below = np.roll(noise, 1, axis=1), np.roll(noise, 1, axis=0)
        noise = (noise + right + below + np.roll(right, 1, axis=0)) * np.float32(0.5)
    return noise


def _window(rng: np.random.Generator, size: int, grain: int = 1) -> np.ndarray:
    sheet = _noise(grain)
    if size > 512:
        sheet = np.tile(sheet, (size // 512 + 1, size // 512 + 1))
    top, left = rng.integers(0, sheet.shape[0] - size, size=2)
    return sheet[top : top + size, left : left + size]


def _patch(image: np.ndarray, x: float, y: float, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of the image within `reach` of (x, y), and its pixel centres relative to there."""
    height, width = image.shape[:2]
    left, right = max(0, int(x - reach)), min(width, int(x + reach) + 2)
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 2)
    dx = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
    dy = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)
    return image[top:bottom, left:right], dx[None, :], dy[:, None]


def _draw(image: np.ndarray, item: Item, rng: np.random.Generator) -> None:
    """Blend one shape over the image, its edge one pixel soft, with a slight shading across it."""
    view, dx, dy = _patch(image, item.x, item.y, item.reach + 1)
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin  # the shape's own axes
    if item.stretch != 1:
        long = math.sqrt(item.stretch)
        u, v = u / long, v * long
    distance = _distance(item.kind, u, v, item.radius)
    if item.stretch != 1:  # measured in the shape as it was: by its slope, it is pixels again near the edge
        distance = distance / np.hypot(*np.gradient(distance)).clip(0.1)
    cover = (0.5 - distance).clip(0, 1)  # (h, w)
    tilt = rng.uniform(-0.35, 0.35)
    cover *= 1 + tilt * u / item.radius
    view += cover[:, :, None] * np.array(item.colour, dtype=np.float32)


def _distance(kind: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Signed distance to the shape's edge in pixels, negative inside; `r` is its circumscribed radius."""
    if kind == "circle":
        return np.sqrt(u * u + v * v) - r
    if kind == "ring":
        return np.abs(np.sqrt(u * u + v * v) - 0.8 * r) - 0.2 * r
    if kind == "half-moon":
        bite = np.sqrt((u - 0.55 * r) ** 2 + v * v) - 0.8 * r
        return np.maximum(np.sqrt(u * u + v * v) - r, -bite)
    if kind == "cross":
        return np.minimum(_bar(u, v, 0.96 * r, 0.24 * r), _bar(v, u, 0.96 * r, 0.24 * r))
    if kind == "chevron":  # two sides of a triangle
        return np.maximum(_polygon(u, v, r, 3), -_polygon(u + 0.5 * r, v, r, 3))
    if kind == "frame":
        return np.maximum(_polygon(u, v, r, 4), -_polygon(u, v, 0.6 * r, 4))
    return _polygon(u, v, r, {"square": 4, "triangle": 3}[kind])


def _polygon(u: np.ndarray, v: np.ndarray, r: float, sides: int) -> np.ndarray:
    """Regular polygon with a corner on the u axis: the largest of the distances to its sides."""
    apothem = r * math.cos(math.pi / sides)
    turns = [math.pi * (2 * k + 1) / sides for k in range(sides)]
    result = u * math.cos(turns[0]) + v * math.sin(turns[0])
    for turn in turns[1:]:
        result = np.maximum(result, u * math.cos(turn) + v * math.sin(turn))
    return result - apothem


def _bar(u: np.ndarray, v: np.ndarray, half_length: float, half_width: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_length, np.abs(v) - half_width)


def _stroke(image: np.ndarray, rng: np.random.Generator) -> None:
    """A faint straight scratch: an edge that belongs to nothing."""
    x, y = rng.uniform(0, image.shape[0], size=2)
    half, width, angle = rng.uniform(8, 30), rng.uniform(0.5, 2.0), rng.uniform(0, math.pi)
    view, dx, dy = _patch(image, x, y, half + 1)
    cos, sin = math.cos(angle), math.sin(angle)
    cover = (0.5 - _bar(dx * cos + dy * sin, dy * cos - dx * sin, half, width)).clip(0, 1)
    view += cover[:, :, None] * rng.uniform(-26, 26, size=3).astype(np.float32)
