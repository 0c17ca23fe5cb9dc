"""What can happen in a motion_shapes clip: the labels, a scene as a pure function of (seed, index), the held-out tenth.

Lengths are fractions of the shorter side of the frame and times are seconds, so one scene looks the same at every
size and frame rate. Every label is chosen so that it can be told apart at 12x20 pixels and 3 frames per second:
shapes differ in silhouette or shading, colours in hue, and no motion repeats faster than 1.5 times a second.
"""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np

from imagen_video_jax.errors import UserError

FLAT_SHAPES = ("circle", "square", "triangle", "star", "ring")
SOLID_SHAPES = ("cube", "pyramid", "cylinder")
SHAPES = FLAT_SHAPES + SOLID_SHAPES
COLOURS = {
    "red": (228, 26, 28),
    "orange": (255, 122, 0),
    "yellow": (255, 232, 20),
    "green": (30, 170, 50),
    "cyan": (0, 220, 225),
    "blue": (40, 70, 240),
    "purple": (140, 40, 205),
    "pink": (255, 100, 180),
}
SIZES = {"small": (0.38, 0.42), "large": (0.55, 0.60)}  # diameter, a fraction of the shorter side
BACKGROUNDS = {"black": (0, 0), "grey": (128, 128), "white": (255, 255), "striped": (70, 125)}  # two grey levels
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "spin", "bounce", "still")
STYLES = ("plain", "pencil sketch", "watercolour", "pixel art", "neon")  # videos are plain, images are any
WORDS = (
    "HELLO", "YES", "NO", "GO", "STOP", "LOVE", "HOME", "SUN", "MOON", "TREE",
    "FISH", "BIRD", "CAT", "DOG", "RAIN", "SNOW", "WIND", "FIRE", "LEAF", "MILK",
    "CAKE", "BOOK", "DOOR", "SHIP", "BOAT", "LAMP", "HAND", "WOLF", "BEAR", "FROG",
    "JUMP", "PLAY", "SING", "DANCE", "WAVE", "PEACE", "HOPE", "TIME", "OPEN", "WATER",
)  # fmt: skip
WORD_SHAPE, WORD_MOTION = "word", "appear"  # the labels of a text clip
SPLITS = ("train", "validation", "held_out")
SECONDS = 64 / 24  # of a full clip

_WORD_SHARE = 0.1
_HELD_OUT_SHARE = 0.1
# Styles that imply a ground: pencil and watercolour are on paper, neon shines in the dark.
_STYLE_BACKGROUNDS = {"pencil sketch": ("white", "grey"), "watercolour": ("white", "grey"), "neon": ("black",)}


@dataclasses.dataclass(frozen=True)
class Scene:
    """Labels and continuous parameters of one clip or image; the defaults put the shape in the middle.

    Attributes:
      shape: one of SHAPES, or "word" for a text clip.
      motion: one of MOTIONS, or "appear" for the letters of a text clip ("still" where all are there from the start).
      word: one of WORDS in a text clip, else "".
      size: one of SIZES, "" in a text clip.
      x, y: where the shape is in its free room, each in [-1, 1]; a shape that travels ignores the axis it travels on.
      extent: where in the range of its size the diameter lies, in [0, 1].
      reach: how much of its way a travelling shape goes, in (0, 1].
      phase: where a repeating motion starts, in [0, 1].
      angle: how the shape is turned at the start, in [-1, 1].
      seconds: how long travelling, growing, shrinking and writing take; the shape rests afterwards.
      variation: which phrasings and which paper texture.
      image: whether it is a single picture, whose captions speak of no motion.
    """

    shape: str = "circle"
    colour: str = "red"
    motion: str = "still"
    size: str = "small"
    background: str = "black"
    style: str = "plain"
    word: str = ""
    x: float = 0.0
    y: float = 0.0
    extent: float = 0.5
    reach: float = 1.0
    phase: float = 0.0
    angle: float = 0.0
    seconds: float = SECONDS
    variation: int = 0
    image: bool = False

    @property
    def diameter(self) -> float:
        """Diameter of the shape, a fraction of the shorter side of the frame (before it grows or shrinks)."""
        low, high = SIZES[self.size or "small"]
        return low + (high - low) * self.extent

    @property
    def held_out(self) -> bool:
        """Whether training never shows this combination of shape, colour and motion."""
        return (self.shape, self.colour, self.motion) in _held_out_set()

    def labels(self) -> dict[str, str | bool]:
        """The plain labels, as they stand in captions.jsonl."""
        names = ("shape", "colour", "size", "background", "motion", "word", "style")
        return {name: getattr(self, name) for name in names} | {"held_out": self.held_out}


def scene_of(
    *,
    shape: str | None = None,
    colour: str = "red",
    motion: str | None = None,
    size: str | None = None,
    background: str = "black",
    style: str = "plain",
    word: str = "",
    variation: int = 0,
    image: bool = False,
) -> Scene:
    """The scene with the labels asked for; a `word` makes a text clip. UserError for a label that does not exist."""
    shape = shape or (WORD_SHAPE if word else "circle")
    motion = motion or (WORD_MOTION if word else "still")
    size = size or ("" if word else "small")
    choices = {
        "shape": (shape, (WORD_SHAPE,) if word else SHAPES),
        "motion": (motion, (WORD_MOTION, "still") if word else MOTIONS),
        "size": (size, ("",) if word else SIZES),
        "word": (word, WORDS if word else ("",)),
        "colour": (colour, COLOURS),
        "background": (background, BACKGROUNDS),
        "style": (style, STYLES),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed) or 'none'}, got {value!r}")
    return Scene(shape, colour, motion, size, background, style, word, variation=variation, image=image)


@functools.cache
def held_out_combinations() -> tuple[tuple[str, str, str], ...]:
    """The tenth of all (shape, colour, motion) that training never sees: fixed, whatever the seed of a data set.

    In the order of a hash, as far as no shape, colour or motion gets more than its share and no pair of labels is
    held out more than twice: each label, and nearly each pair of labels, is still seen in training.
    """
    everything = list(itertools.product(SHAPES, COLOURS, MOTIONS))
    wanted = round(_HELD_OUT_SHARE * len(everything))
    names = ("shape", "colour", "motion")
    share = {name: wanted // len(values) + 1 for name, values in zip(names, (SHAPES, COLOURS, MOTIONS))}
    counts, pairs, chosen = {}, {}, []
    for combination in sorted(everything, key=lambda c: hashlib.sha256(" ".join(c).encode()).digest()):
        labels = list(zip(names, combination))
        couples = list(itertools.combinations(labels, 2))
        full = any(counts.get(label, 0) >= share[label[0]] for label in labels)
        if len(chosen) == wanted or full or any(pairs.get(couple, 0) >= 2 for couple in couples):
            continue
        chosen.append(combination)
        for label in labels:
            counts[label] = counts.get(label, 0) + 1
        for couple in couples:
            pairs[couple] = pairs.get(couple, 0) + 1
    return tuple(sorted(chosen))


@functools.cache
def _held_out_set() -> frozenset[tuple[str, str, str]]:
    return frozenset(held_out_combinations())


@functools.cache
def _combinations(held_out: bool, image: bool) -> tuple[tuple[str, str, str], ...]:
    motions = ("still",) if image else MOTIONS
    everything = itertools.product(SHAPES, COLOURS, motions)
    return tuple(combination for combination in everything if (combination in _held_out_set()) == held_out)


def _pick(rng: np.random.Generator, options):
    options = tuple(options)
    return options[int(rng.integers(len(options)))]


def make_scene(seed: int, index: int, *, split: str = "train", image: bool = False) -> Scene:
    """Scene number `index` of a data set: the same for the same arguments, for ever.

    Splits draw from different random streams. "train" and "validation" never show a held-out combination and a tenth
    of their scenes are text; "held_out" shows held-out combinations only. Images are drawn in any style.
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0 or index < 0:
        raise UserError(f"seed and index must not be negative, got seed {seed} and index {index}")
    rng = np.random.default_rng([seed, SPLITS.index(split), int(image), index])
    is_word = rng.random() < _WORD_SHARE and split != "held_out"
    shape, colour, motion = _pick(rng, _combinations(split == "held_out", image))
    style = _pick(rng, STYLES) if image else "plain"
    background = _pick(rng, _STYLE_BACKGROUNDS.get(style, BACKGROUNDS))
    size, word = _pick(rng, SIZES), _pick(rng, WORDS)
    x, y, angle = (float(value) for value in rng.uniform(-1, 1, 3))
    extent, phase, slack = (float(value) for value in rng.random(3))
    scene = Scene(
        shape=shape,
        colour=colour,
        motion=motion,
        size=size,
        background=background,
        style=style,
        x=x,
        y=y,
        extent=extent,
        reach=1 - 0.15 * slack,
        phase=phase,
        angle=angle,
        variation=int(rng.integers(1 << 30)),
        image=image,
    )
    if is_word:
        motion = "still" if image else WORD_MOTION
        return dataclasses.replace(scene, shape=WORD_SHAPE, motion=motion, size="", word=word)
    return scene
