"""What is said about a motion_shapes scene: several phrasings per fact, and paraphrases in words training never uses.

Colour, shape and motion (or word, or style of an image) are in every caption, size and background in some. The size
of a shape that grows or shrinks is never mentioned: it changes.
"""

import itertools
import re

import numpy as np

from imagen_video_jax.data.motion_shapes_scene import SHAPES, Scene

# third person and "-ing" form of each phrasing
_VERBS = {
    "left": (("moves left", "moving left"), ("moves to the left", "moving to the left"), ("goes left", "going left")),
    "right": (
        ("moves right", "moving right"),
        ("moves to the right", "moving to the right"),
        ("goes right", "going right"),
    ),
    "up": (("moves up", "moving up"), ("goes up", "going up"), ("moves upwards", "moving upwards")),
    "down": (("moves down", "moving down"), ("goes down", "going down"), ("moves downwards", "moving downwards")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger"), ("becomes bigger", "becoming bigger")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller"), ("becomes smaller", "becoming smaller")),
    "spin": (("spins", "spinning"), ("spins around", "spinning around"), ("keeps spinning", "that keeps spinning")),
    "bounce": (
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("keeps bouncing", "that keeps bouncing"),
    ),
    "still": (
        ("stays still", "staying still"),
        ("does not move", "that does not move"),
        ("stays in one place", "staying in one place"),
    ),
}
_CLIP_FORMS = ("{shape} {verb}{ground}", "{ground_first}{shape} {verb}", "a video of {shape} {ing}{ground}")
_WORD_FORMS = (
    'the word "{word}" appears letter by letter in {colour}{ground}',
    '{ground_first}the word "{word}" appears in {colour} letters, one by one',
    '{colour} letters spell the word "{word}" one by one{ground}',
)
_STYLE_FORMS = {
    "plain": ("{shape}{ground}", "a picture of {shape}{ground}", "an image of {shape}{ground}"),
    "pencil sketch": ("a pencil sketch of {shape}{ground}", "{shape} in pencil sketch style{ground}"),
    "watercolour": (
        "a watercolour painting of {shape}{ground}",
        "{shape} in watercolour style{ground}",
        "a watercolour of {shape}{ground}",
    ),
    "pixel art": ("pixel art of {shape}{ground}", "{shape} in pixel art style{ground}"),
    "neon": ("{shape} in neon style{ground}", "a neon sign of {shape}{ground}", "neon art of {shape}{ground}"),
}

_OTHER_SHAPE = {
    "circle": "disc",
    "square": "tile with four equal sides",
    "triangle": "three-cornered figure",
    "star": "five-pointed figure",
    "ring": "hoop",
    "cube": "dice",
    "pyramid": "pointed tent",
    "cylinder": "tin can",
}
_OTHER_COLOUR = {
    "red": "crimson",
    "orange": "tangerine",
    "yellow": "lemon",
    "green": "emerald",
    "cyan": "turquoise",
    "blue": "cobalt",
    "purple": "violet",
    "pink": "rosy",
}
_OTHER_MOTION = {
    "left": "drifts leftwards",
    "right": "drifts rightwards",
    "up": "rises",
    "down": "sinks",
    "grow": "swells",
    "shrink": "dwindles",
    "spin": "twirls",
    "bounce": "hops like a ball",
    "still": "rests motionless",
}
_OTHER_GROUND = {
    "black": "against pitch darkness",
    "grey": "against a concrete wall",
    "white": "against snow",
    "striped": "against a curtain with vertical bands",
}
_OTHER_STYLE = {
    "plain": "",
    "pencil sketch": ", hand-drawn with crayons",
    "watercolour": ", painted with a wet brush",
    "pixel art": ", like an eight-bit computer game",
    "neon": ", made of luminous tubes",
}


def _with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def captions_of(scene: Scene, count: int) -> list[str]:
    """`count` different captions of a scene, always the same ones; ValueError when there are fewer phrasings."""
    rng = np.random.default_rng([scene.variation, 1])
    sizes = [""] if scene.motion in ("grow", "shrink") or not scene.size else [scene.size + " ", ""]
    choices = list(itertools.product(range(3), range(3), sizes, (True, False)))
    captions: list[str] = []
    for i in rng.permutation(len(choices)):
        phrasing, form, size, ground = choices[i]
        caption = _caption(scene, phrasing=phrasing, form=form, size=size, ground=ground)
        if caption not in captions:
            captions.append(caption)
        if len(captions) >= count:
            return captions[:count]
    raise ValueError(f"a scene has {len(captions)} different captions, {count} were asked for")


def _caption(scene: Scene, *, phrasing: int, form: int, size: str, ground: bool) -> str:
    forms = _STYLE_FORMS[scene.style] if scene.image else _WORD_FORMS if scene.word else _CLIP_FORMS
    shape = _with_article(f"{size}{scene.colour} {scene.shape}")
    if scene.word:
        shape = f'the word "{scene.word}" in {scene.colour}'
    verb, ing = _VERBS.get(scene.motion, _VERBS["still"])[phrasing]
    place = f"on {_with_article(scene.background)} background" if ground else ""
    caption = forms[form % len(forms)].format(
        shape=shape,
        verb=verb,
        ing=ing,
        colour=scene.colour,
        word=scene.word,
        ground=" " + place if place else "",
        ground_first=place + ", " if place else "",
    )
    # No training video has a style; a prompt for one names it as the captions of images do.
    return caption if scene.image or scene.style == "plain" else f"{caption} in {scene.style} style"


def paraphrase_of(scene: Scene) -> str:
    """The same facts in words that no training caption uses (a word that is shown is still named)."""
    colour, ground = _OTHER_COLOUR[scene.colour], _OTHER_GROUND[scene.background]
    if scene.word:
        return f"{colour} capitals write {scene.word} {ground}{_OTHER_STYLE[scene.style]}"
    noun = _with_article(f"{colour} {_OTHER_SHAPE[scene.shape]}")
    verb = "" if scene.image else _OTHER_MOTION[scene.motion] + " "
    return f"{noun} {verb}{ground}{_OTHER_STYLE[scene.style]}"


_FIGURES = {*SHAPES, *(noun.split()[-1] for noun in _OTHER_SHAPE.values()), "tile", "word", "letters", "capitals"}


def names_a_figure(prompt: str) -> bool:
    """Whether a prompt names a shape, as captions or paraphrases do, or asks for a word to be written."""
    words = re.findall("[a-z]+", prompt.lower())
    return any(word in _FIGURES or word.removesuffix("s") in _FIGURES for word in words)
