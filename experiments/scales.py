"""Every size of every stage, at every scale: one aligned table per scale, a row per stage.

tiny   exercises every layer at the smallest sizes (tests, minutes on a laptop)
mini   the demo: trains on two CPU cores, samples 64 frames of 96x160
small  one GPU
paper  the sizes of arXiv 2210.02303: 5.6B, 1.7B, 1.4B, 1.2B, 780M, 630M and 340M parameters (published are the counts
       and the frame sizes; widths and depths are free choices, made to meet the counts)
"""

from ml_collections import ConfigDict

STAGES = (
    "base_16f_24x40",
    "temporal_sr_32f_24x40",
    "spatial_sr_32f_48x80",
    "spatial_sr_32f_192x320",
    "temporal_sr_64f_192x320",
    "temporal_sr_128f_192x320",
    "spatial_sr_128f_768x1280",
)
KINDS = ("base", "temporal_sr", "spatial_sr", "spatial_sr", "temporal_sr", "temporal_sr", "spatial_sr")

# frames, height, width, fps of the output; factor of the input; training crop and window (0: whole frames, all frames)
SIZES = {
    "tiny": (
        (4, 6, 10, 3, 1, 0, 0, 0),
        (8, 6, 10, 6, 2, 0, 0, 0),
        (8, 12, 20, 6, 2, 0, 0, 0),
        (8, 24, 40, 6, 2, 0, 0, 0),
        (16, 24, 40, 12, 2, 0, 0, 0),
        (32, 24, 40, 24, 2, 0, 0, 0),
        (32, 48, 80, 24, 2, 24, 40, 0),
    ),
    "mini": (
        (8, 12, 20, 3, 1, 0, 0, 0),
        (16, 12, 20, 6, 2, 0, 0, 0),
        (16, 24, 40, 6, 2, 0, 0, 0),
        (16, 48, 80, 6, 2, 0, 0, 0),
        (32, 48, 80, 12, 2, 0, 0, 16),
        (64, 48, 80, 24, 2, 0, 0, 16),
        (64, 96, 160, 24, 2, 48, 80, 16),
    ),
    "small": (
        (16, 24, 40, 3, 1, 0, 0, 0),
        (32, 24, 40, 6, 2, 0, 0, 0),
        (32, 48, 80, 6, 2, 0, 0, 0),
        (32, 96, 160, 6, 2, 0, 0, 0),
        (64, 96, 160, 12, 2, 0, 0, 0),
        (128, 96, 160, 24, 2, 0, 0, 0),
        (128, 192, 320, 24, 2, 96, 160, 0),
    ),
    "paper": (
        (16, 24, 40, 3, 1, 0, 0, 0),
        (32, 24, 40, 6, 2, 0, 0, 0),
        (32, 48, 80, 6, 2, 0, 0, 0),
        (32, 192, 320, 6, 4, 0, 0, 0),
        (64, 192, 320, 12, 2, 0, 0, 0),
        (128, 192, 320, 24, 2, 0, 0, 0),
        (128, 768, 1280, 24, 4, 192, 320, 0),
    ),
}

# channels and blocks per level; levels (from the top) with attention over space, and to text; patch; embedding width.
# Levels are numbered from 0, the highest resolution.
NETWORKS = {
    "tiny": (
        ((16, 32), (1, 1), (1,), (1,), 1, 64),
        ((8, 16), (1, 1), (1,), (1,), 1, 64),
        ((8, 16), (1, 1), (1,), (1,), 2, 64),
        ((8, 16), (1, 1), (1,), (1,), 4, 64),
        ((8, 16), (1, 1), (), (1,), 4, 64),
        ((8, 16), (1, 1), (), (1,), 4, 64),
        ((8, 16), (1, 1), (), (1,), 4, 64),
    ),
    "mini": (
        ((32, 48, 96), (1, 1, 1), (2,), (1, 2), 1, 192),
        ((32, 64), (1, 1), (1,), (1,), 2, 128),
        ((32, 64), (1, 1), (1,), (1,), 2, 128),
        ((32, 64), (1, 1), (), (1,), 4, 128),
        ((32, 64), (1, 1), (), (1,), 4, 128),
        ((32, 64), (1, 1), (), (1,), 4, 128),
        ((32, 64), (1, 1), (), (1,), 4, 128),
    ),
    "small": (
        ((128, 256, 512), (2, 2, 2), (1, 2), (1, 2), 1, 512),
        ((128, 256, 384), (2, 2, 2), (2,), (2,), 1, 512),
        ((64, 128, 256, 384), (1, 2, 2, 2), (3,), (2, 3), 1, 512),
        ((64, 128, 256, 384), (1, 2, 2, 2), (3,), (3,), 2, 512),
        ((64, 128, 256, 384), (1, 2, 2, 2), (), (3,), 2, 512),
        ((64, 128, 256, 384), (1, 2, 2, 2), (), (3,), 2, 512),
        ((64, 128, 256), (1, 2, 4), (), (2,), 2, 512),
    ),
    "paper": (
        ((1024, 2048, 4096), (3, 3, 3), (0, 1, 2), (0, 1, 2), 1, 4096),
        ((512, 1024, 2048), (2, 4, 5), (2,), (2,), 1, 2048),
        ((256, 512, 1024, 1792), (2, 2, 4, 5), (2, 3), (2, 3), 1, 1024),
        ((128, 256, 512, 1024, 1792), (2, 2, 4, 4, 4), (4,), (3, 4), 1, 1024),
        ((128, 256, 512, 1024), (2, 4, 8, 8), (3,), (3,), 1, 1536),
        ((128, 256, 512, 1024), (2, 4, 8, 6), (3,), (3,), 1, 1280),
        ((128, 256, 512, 896), (2, 4, 6, 4), (), (3,), 1, 768),
    ),
}

# Levels that mix no time: the miniature's base draws at full resolution what moves at half of it.
STILL = {("mini", 0): (0,)}

# updates, learning rate, warm-up, decay, EMA
TRAINING = {
    "tiny": (100, 1e-3, 10, "constant", 0.99),
    "mini": (4000, 3e-3, 20, "cosine", 0.995),
    "small": (200_000, 2e-4, 2000, "constant", 0.9999),
    "paper": (2_000_000, 1e-4, 10_000, "constant", 0.9999),
}

# clips per step of each stage; half as many images (as many in the paper's last two, which are cut into more parts)
BATCHES = {
    "tiny": (4, 4, 4, 4, 4, 4, 4),
    "mini": (16, 16, 8, 4, 4, 4, 4),
    "small": (64, 64, 64, 64, 64, 64, 64),
    "paper": (2048, 2048, 2048, 2048, 2048, 2048, 2048),
}

# On v5p:4x4x4 (64 chips): parts that a step's batch is cut into, so that a chip sees two clips (one in the last two
# stages) and an image or two at a time; and chips along the frames and along the height of a video that is sampled.
PAPER_PARTS = (16, 16, 16, 16, 16, 32, 32)
PAPER_SAMPLING = ((1, 1), (1, 1), (1, 1), (1, 1), (16, 1), (16, 1), (16, 4))
# Chips that share one copy of the weights and their moments. Each gathers a layer's weights before it uses them:
# along two axes of a slice's torus the TPU compiler makes an all-gather of it, along three (64 chips of a v5p:4x4x4) an
# all-reduce, which moves twice the bytes. 16 divides all widths.
PAPER_FSDP = 16

# width of a text token, tokens per caption, channels of a head
TEXT = {"tiny": (384, 24, 16), "mini": (384, 32, 24), "small": (384, 64, 64), "paper": (4096, 128, 64)}


def check(scale: str) -> None:
    if scale not in SIZES:
        raise ValueError(f"unknown scale {scale!r}, known are {', '.join(SIZES)}")


def at(levels: tuple[int, ...], count: int) -> tuple[bool, ...]:
    return tuple(level in levels for level in range(count))


def parts(name: str, scale: str) -> int:
    """Parts of a step's batch that are computed one after another."""
    return PAPER_PARTS[STAGES.index(name)] if scale == "paper" else 1


def mesh(scale: str) -> dict[str, int]:
    """Chips along each axis in training; -1 takes the rest. The paper's state is too large for one chip."""
    fsdp = PAPER_FSDP if scale == "paper" else 1
    return {"data": -1, "fsdp": fsdp, "tensor": 1, "frames": 1, "height": 1}


def sample_mesh(name: str, scale: str) -> dict[str, int]:
    """Chips along each axis in sampling. Those that share a video's frames leave few to share the weights."""
    frames, height = PAPER_SAMPLING[STAGES.index(name)] if scale == "paper" else (1, 1)
    if frames * height == 1:
        return mesh(scale)
    return {"data": 1, "fsdp": -1, "tensor": 1, "frames": frames, "height": height}


def stage(name: str, scale: str) -> ConfigDict:
    """The sizes of one stage: what defaults.py does not decide."""
    check(scale)
    index = STAGES.index(name)
    frames, height, width, fps, factor, crop_height, crop_width, window = SIZES[scale][index]
    channels, blocks, spatial, text, patch, embedding = NETWORKS[scale][index]
    text_width, text_length, head_width = TEXT[scale]
    base = KINDS[index] == "base"
    return ConfigDict(
        {
            "name": name,
            "kind": KINDS[index],
            "frames": frames,
            "height": height,
            "width": width,
            "fps": float(fps),
            "factor": factor,
            "crop": (crop_height, crop_width),
            "window": window,
            "text_length": text_length,
            "network": {
                "channels": channels,
                "blocks": blocks,
                "spatial_attention": at(spatial, len(channels)),
                "text_attention": at(text, len(channels)),
                "temporal": tuple(
                    "none" if level in STILL.get((scale, index), ()) else "attention" if base else "convolution"
                    for level in range(len(channels))
                ),
                "layout": "unet" if base else "efficient",
                "patch": patch,
                "low_resolution": not base,
                "low_resolution_mask": KINDS[index] == "temporal_sr",
                "frame_positions": base,
                "text_width": text_width,
                "embedding_width": embedding,
                "head_width": head_width,
                "max_frames": 128,
                "remat": scale in ("small", "paper"),
                "remat_policy": "nothing",
                "attention": "auto",
                "dtype": "bfloat16" if scale in ("small", "paper") else "float32",
            },
        }
    )
