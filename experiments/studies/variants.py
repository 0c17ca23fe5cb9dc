"""What is compared with what: every study of `compare.py`, its variants as changes of one stage's experiment file.

Studies that train a base train the smaller one that the miniature's grows out of: it learns in a third of the time.
"""

import dataclasses
from collections.abc import Mapping

from experiments.miniature.grow import SMALL


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train or to sample a stage.

    Attributes:
      name: in tables and folders.
      fields: of its training config, as in --config.FIELD=VALUE; none for the experiment file as it is.
      sampler: fields of the stage's sampler to change.
      drawn: so many of the first stages give the scenes as they are drawn: 1 for a perfect base, 7 for no model at all.
    """

    name: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sampler: Mapping[str, object] = dataclasses.field(default_factory=dict)
    drawn: int = 0


@dataclasses.dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
      question: what the table answers.
      stage: that is compared.
      variants: the first is what the others are compared with.
      measures: columns of the table, of `samples.values_of`.
      prompts: which, see `prompts_of`.
      steps: updates of each variant; 0: nothing is trained, the stage that the package comes with is sampled.
      videos: sampled of each variant and seed.
    """

    question: str
    stage: str
    variants: tuple[Variant, ...]
    measures: tuple[str, ...] = ("all", "colour", "shape", "motion")
    prompts: tuple[str, ...] = ("validation",)
    steps: int = 2000
    videos: int = 128


BASE, SPATIAL, LAST = "base_16f_24x40", "spatial_sr_32f_48x80", "spatial_sr_128f_768x1280"
AS_IT_IS = Variant("as it is")


def _wide(channels: str, embedding: str) -> dict[str, str]:
    return {**SMALL, "stage.network.channels": channels, "stage.network.embedding_width": embedding}


def _guided(weight: float, clip: str = "dynamic", low: float | None = None) -> Variant:
    name = f"{weight:g}" if low is None else f"{weight:g} and {low:g} in turn"
    return Variant(f"{name}, {clip} clipping", sampler={"guidance": weight, "guidance_low": low, "clip": clip})


STUDIES = {
    "prediction": Study(
        "Should the network predict v or epsilon? (paper, figures 12, 13: v; epsilon is slower and drifts in colour)",
        BASE,
        (
            Variant("v", {**SMALL, "stage.prediction": "v", "stage.weighting": "eps_mse"}),
            Variant("epsilon", {**SMALL, "stage.prediction": "eps", "stage.weighting": "eps_mse"}),
            Variant("x", SMALL),
        ),
        measures=("all", "colour", "shape", "motion", "pixels_colour_drift", "pixels_flicker"),
    ),
    "joint": Study(
        "Do images beside the videos help? (paper, section 2.5: they do, and their styles carry over to videos)",
        BASE,
        (Variant("videos and images", SMALL), Variant("videos only", {**SMALL, "image_batch_size": "0"})),
        measures=("all", "colour", "shape", "motion", "style"),
        prompts=("validation", "styled"),
    ),
    "sizes": Study(
        "Is a larger base better? (paper, figure 11: it is, up to the largest)",
        BASE,
        (
            Variant("as it is", SMALL),
            Variant("half as wide", _wide("(24,48)", "96")),
            Variant("twice as wide", _wide("(96,192)", "384")),
        ),
    ),
    "guidance": Study(
        "How much guidance, clipped how, steady or oscillating? (paper, section 3.4: much, dynamically, oscillating)",
        BASE,
        (
            *(_guided(weight) for weight in (1.0, 0.0, 0.5, 2.0, 4.0, 15.0)),
            *(_guided(weight, "static") for weight in (1.0, 4.0, 15.0)),
            *(_guided(weight, low=low) for weight, low in ((2.0, 0.0), (4.0, 0.0), (15.0, 1.0))),
        ),
        measures=("all", "colour", "shape", "motion", "pixels_flicker", "pixels_motion"),
        steps=0,
    ),
    "words_and_solids": Study(
        "Does the whole cascade write words letter by letter, and turn solids (paper, figures 2, 7, 8: it does), and "
        "if not, what of it is the base's fault?",
        LAST,
        (
            Variant("real clips", drawn=7),
            AS_IT_IS,
            Variant("real clips from the base's size on", drawn=1),
        ),
        measures=("all", "colour", "shape", "motion", "word"),
        prompts=("validation", "words", "solids"),
        steps=0,
        videos=64,
    ),
    "augmentation": Study(
        "Does noise on the input of super-resolution help the cascade? (paper, section 2.4: it does)",
        SPATIAL,
        (
            AS_IT_IS,
            Variant("no noise", {"stage.augmentation_max": "0.0", "stage.sampler.augmentation_snr": "inf"}),
            Variant("the paper's noise", {"stage.augmentation_max": "1.0", "stage.sampler.augmentation_snr": "5.0"}),
        ),
        steps=600,
    ),
}
