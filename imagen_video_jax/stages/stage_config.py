"""`StageConfig`: what one stage of the cascade is, and how it may be sampled."""

import dataclasses
import math

from imagen_video_jax.diffusion import gaussian
from imagen_video_jax.diffusion.distillation import StudentConfig
from imagen_video_jax.diffusion.loss import WEIGHTINGS
from imagen_video_jax.diffusion.samplers import SamplerConfig
from imagen_video_jax.diffusion.schedules import Schedule
from imagen_video_jax.models.video_unet import VideoUNetConfig
from imagen_video_jax.stages import conditioning


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of the cascade.

    Attributes:
      name: of the experiment, e.g. "base_16f_24x40".
      kind: "base", "temporal_sr" or "spatial_sr".
      frames, height, width, fps: of the output.
      factor: how many times more frames (temporal) or pixels per side (spatial) than the input; 1 for the base.
      crop: (height, width) of random training crops of the output, or None for whole frames.
      window: frames of a training clip, or 0 for all; a stage that mixes time by convolution learns from a part.
      fill: how a temporal stage brings its input to the output's frames: "repeat" or "blank".
      blank_image: whether a temporal stage trains on images with a blank input instead of the image itself.
      prediction: what the network's output means: "v", "eps" or "x".
      residual: with prediction "x" in super-resolution: the network adds to its (denoised) input instead of making x.
      weighting, sigmoid_bias: of the loss, see diffusion/loss.py.
      text_length, text_drop: tokens per caption; share of examples that train without text.
      augmentation_max: in training the input is noised at cosine time U(0, augmentation_max).
      schedule, sampler, network, student: see their classes.
    """

    name: str
    kind: str
    frames: int
    height: int
    width: int
    fps: float
    factor: int = 1
    crop: tuple[int, int] | None = None
    window: int = 0
    fill: str = "repeat"
    blank_image: bool = False
    prediction: str = "v"
    residual: bool = False
    weighting: str = "eps_mse"
    sigmoid_bias: float = 0.0
    text_length: int = 64
    text_drop: float = 0.1
    augmentation_max: float = 1.0
    schedule: Schedule = Schedule()
    sampler: SamplerConfig = SamplerConfig()
    network: VideoUNetConfig = VideoUNetConfig()
    student: StudentConfig = StudentConfig()

    def __post_init__(self):
        for field in ("frames", "height", "width", "factor", "text_length"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        choices = {
            "kind": conditioning.KINDS,
            "fill": conditioning.FILLS,
            "prediction": gaussian.PREDICTIONS,
            "weighting": WEIGHTINGS,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, got {getattr(self, field)!r}")
        if not 0.0 <= self.text_drop <= 1.0:
            raise ValueError(f"text_drop must be in [0, 1], got {self.text_drop}")
        if not 0.0 <= self.augmentation_max <= 1.0:
            raise ValueError(f"augmentation_max must be in [0, 1], got {self.augmentation_max}")
        if self.network.low_resolution != (self.kind != "base"):
            raise ValueError(f"network.low_resolution must be {self.kind != 'base'} for kind {self.kind!r}")
        check_sampler(self, self.sampler)
        if self.residual and (self.kind == "base" or self.prediction != "x"):
            raise ValueError(f"residual needs prediction 'x' and a low-resolution input, not {self.kind!r}")
        for size, name in zip(self.train_size, ("height", "width")):
            if size % (self.network.patch * (self.factor if self.kind == "spatial_sr" else 1)):
                raise ValueError(f"{name} {size} must be divisible by network.patch and by the spatial factor")
        if not 1 <= self.train_frames <= self.frames:
            raise ValueError(f"window must be between 1 and frames {self.frames}, got {self.window}")
        for name in ("frames", "train_frames"):
            if self.kind == "temporal_sr" and getattr(self, name) % self.factor:
                raise ValueError(f"{name} {getattr(self, name)} must be divisible by factor {self.factor}")
            if self.kind == "temporal_sr" and getattr(self, name) < 2 * self.factor:
                raise ValueError(f"{name} {getattr(self, name)} must be at least twice factor {self.factor}")

    @property
    def train_size(self) -> tuple[int, int]:
        """Height and width that the network sees in training."""
        return self.crop or (self.height, self.width)

    @property
    def crop_grid(self) -> int:
        """Pixels of whose multiples a training crop's corner is one: its input is then a crop of the input, but for
        the outermost pixels, which an antialiased resize makes of what lies beside them, too."""
        return self.factor if self.kind == "spatial_sr" else 1

    @property
    def train_frames(self) -> int:
        """Frames of a training clip."""
        return self.window or self.frames

    @property
    def input_size(self) -> tuple[int, int, int, float] | None:
        """(frames, height, width, fps) of the conditioning video; None for the base."""
        if self.kind == "base":
            return None
        if self.kind == "temporal_sr":
            return self.frames // self.factor, self.height, self.width, self.fps / self.factor
        return self.frames, self.height // self.factor, self.width // self.factor, self.fps

    @property
    def output_size(self) -> tuple[int, int, int, float]:
        return self.frames, self.height, self.width, self.fps


def check_sampler(config: StageConfig, sampler: SamplerConfig) -> None:
    """ValueError unless a stage can be sampled so: with noise on its input that it knows, students at their own number
    of calls, others not as students."""
    name, calls = config.name, config.student.calls
    # What the cosine schedule has at that time; not asked of it, since it would start a device.
    least = math.inf if not config.augmentation_max else math.tan(0.5 * math.pi * config.augmentation_max) ** -2
    if config.kind != "base" and sampler.augmentation_snr < 0.99 * least:
        raise ValueError(
            f"sampler.augmentation_snr {sampler.augmentation_snr:g} is more noise than {name} was trained with "
            f"(augmentation_max {config.augmentation_max:g}); take at least {least:.4g}"
        )
    if calls and (sampler.name, sampler.steps) != ("distilled", calls):
        raise ValueError(
            f"{name} is a student of {calls} network calls: it samples with sampler 'distilled' and steps {calls}, "
            f"not with {sampler.name!r} and {sampler.steps}"
        )
    if not calls and sampler.name == "distilled":
        raise ValueError(f"{name} was not distilled for a number of calls; sample it with ddim, ancestral or dpmpp_2m")
    if not config.network.guidance:
        return
    low, high = config.student.weights
    for weight in sorted({float(weight) for weight in sampler.weights_S}):  # 0 where the interval ends
        if not low <= weight <= high:
            raise ValueError(f"guidance {weight:g} is outside {low:g} to {high:g}, what {name} was distilled for")
    if sampler.rule != "cfg" or sampler.rescale:
        raise ValueError(f"{name} is a student, which has learned plain guidance: leave rule and rescale alone")
