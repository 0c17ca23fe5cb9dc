"""A train step and a forward pass of this U-Net against those of two open implementations, on the same work.

    python -m venv peers && . peers/bin/activate && pip install imagen_video_jax torch==2.13.0
    pip install --no-deps imagen-pytorch video-diffusion-pytorch ema-pytorch pytorch-warmup rotary-embedding-torch \
        einops-exts kornia kornia_rs accelerate
    pip install einops beartype datasets fsspec packaging pillow pydantic sentencepiece transformers tqdm psutil
    python -m experiments.benchmarks.peers [--rounds 5] [--threads 2]

Work: batch 2, 8 frames of 24x40, 32 text tokens of width 512, float32, Adam; mean squared error to a target of the same
shape. Theirs: imagen-pytorch `Unet3D(dim=64, dim_mults=(1, 2, 4), num_resnet_blocks=2, layer_attns and
layer_cross_attns=(False, True, True))` and video-diffusion-pytorch `Unet3D(dim=64, dim_mults=(1, 2, 4), cond_dim=512)`.
Ours has the same levels, blocks and attention, and as many parameters as the first within 5%. They take turns; medians
and ratios are printed, per parameter too where the sizes differ.

Neither package needs torchvision or its own T5 to run its U-Net, but both are imported with it: stand-ins that hold
nothing take their place.
"""

import argparse
import functools
import os
import statistics
import sys
import time
import types
from importlib.machinery import ModuleSpec

import numpy as np

from imagen_video_jax.commands.process import in_one_line, keep_freed_memory

BATCH, FRAMES, HEIGHT, WIDTH, TOKENS, TEXT = 2, 8, 24, 40, 32, 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    keep_freed_memory()  # as every command that computes does; the three share the process
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    rng = np.random.default_rng(0)
    video = rng.normal(size=(BATCH, FRAMES, HEIGHT, WIDTH, 3)).astype(np.float32)
    text = rng.normal(size=(BATCH, TOKENS, TEXT)).astype(np.float32)
    runners = {
        "imagen_video_jax": ours(video, text),
        "imagen-pytorch": imagen_pytorch(video, text, arguments.threads),
        "video-diffusion-pytorch": video_diffusion_pytorch(video, text, arguments.threads),
    }
    times: dict = {(name, what): [] for name in runners for what in ("step", "forward")}
    for round_number in range(arguments.rounds + 1):
        for name, (_, functions) in runners.items():
            for what, function in functions.items():
                time.sleep(0.5)  # threads of the one before still spin for a while
                began = time.perf_counter()
                function()
                if round_number:  # the first compiles
                    times[name, what].append(time.perf_counter() - began)
    show(runners, {key: statistics.median(values) for key, values in times.items()})


def show(runners: dict, medians: dict) -> None:
    own, *others = runners
    own_size = runners[own][0]
    for name, (size, _) in runners.items():
        print(
            f"{name:26}{size / 1e6:6.1f}M parameters   step {medians[name, 'step']:6.2f} s   "
            f"forward {medians[name, 'forward']:6.2f} s"
        )
    for name in others:
        size = runners[name][0]
        for what in ("step", "forward"):
            ratio = medians[name, what] / medians[own, what]
            print(f"{what:8} of {name:26}{ratio:5.2f} times ours, {ratio * own_size / size:5.2f} per parameter")


def ours(video: np.ndarray, text: np.ndarray):
    """(parameters, {what: function that runs it once})."""
    import jax
    import jax.numpy as jnp

    from imagen_video_jax import functional
    from imagen_video_jax.models.layers import KEEPING
    from imagen_video_jax.models.video_unet import VideoUNet, VideoUNetConfig
    from imagen_video_jax.training.optimizer import OptimizerConfig, direction

    config = VideoUNetConfig(
        channels=(64, 128, 256),
        blocks=(2, 2, 2),
        spatial_attention=(False, True, True),
        text_attention=(False, True, True),
        temporal=("attention",) * 3,
        text_width=TEXT,
        embedding_width=576,
        head_width=64,
    )
    network = functional.split(lambda rngs: VideoUNet(rngs, config))
    params = jax.jit(network.init)(jax.random.key(0))
    optimizer = direction(OptimizerConfig())
    conditions = {
        "logsnr_B": jnp.zeros(BATCH),
        "text_BLD": jnp.asarray(text),
        "text_mask_BL": jnp.ones((BATCH, TOKENS), bool),
        "fps_B": jnp.full((BATCH,), 3.0),
    }
    z = jnp.asarray(video)
    forward = jax.jit(lambda params, z: network.apply(params, z, **conditions))

    @functools.partial(jax.jit, compiler_options=KEEPING)  # as `training.loop` does on a CPU
    def step(params, state, z):
        loss = lambda params: jnp.mean((network.apply(params, z, **conditions) - z[:, ::-1]) ** 2)  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, u: p - 1e-4 * u, params, updates), state

    held = {"state": (params, jax.jit(optimizer.init)(params))}

    def one_step():
        held["state"] = jax.block_until_ready(step(*held["state"], z))

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return size, {"step": one_step, "forward": lambda: jax.block_until_ready(forward(params, z))}


def imagen_pytorch(video: np.ndarray, text: np.ndarray, threads: int):
    import torch

    stand_in()
    from imagen_pytorch.imagen_video import Unet3D

    levels = (False, True, True)
    network = Unet3D(
        dim=64,
        dim_mults=(1, 2, 4),
        num_resnet_blocks=2,
        layer_attns=levels,
        layer_cross_attns=levels,
        text_embed_dim=TEXT,
    )
    time_B = torch.zeros(BATCH)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    return of_torch(
        network, video, threads, lambda z: network(z, time_B, text_embeds=torch.from_numpy(text), text_mask=mask)
    )


def video_diffusion_pytorch(video: np.ndarray, text: np.ndarray, threads: int):
    import torch

    stand_in()
    from video_diffusion_pytorch import Unet3D

    network = Unet3D(dim=64, dim_mults=(1, 2, 4), cond_dim=TEXT)
    time_B, pooled = torch.zeros(BATCH), torch.from_numpy(text.mean(1))  # it takes one vector per text
    return of_torch(network, video, threads, lambda z: network(z, time_B, cond=pooled))


def of_torch(network, video: np.ndarray, threads: int, call):
    """The same functions for a torch module that takes BCTHW."""
    import torch

    torch.set_num_threads(threads)
    z = torch.from_numpy(np.ascontiguousarray(video.transpose(0, 4, 1, 2, 3)))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step():
        loss = ((call(z) - z.flip(2)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def forward():
        with torch.no_grad():
            call(z)

    return sum(parameter.numel() for parameter in network.parameters()), {"step": step, "forward": forward}


def stand_in() -> None:
    """Modules that the peers import and their U-Nets do not use."""

    class Nothing:
        def __init__(self, *_, **__):
            pass

    def module(name: str, **names):
        made = types.ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        made.__dict__.update(names)
        return sys.modules.setdefault(name, made)

    wanted = ("Compose", "Lambda", "Resize", "RandomHorizontalFlip", "CenterCrop", "ToTensor", "ToPILImage")
    transforms = module("torchvision.transforms", **dict.fromkeys(wanted, Nothing))
    transforms.functional = module("torchvision.transforms.functional")
    utils = module("torchvision.utils", save_image=None, make_grid=None)
    module("torchvision", transforms=transforms, utils=utils)
    t5 = {"t5_encode_text": None, "get_encoded_dim": lambda name: TEXT, "DEFAULT_T5_NAME": "none"}
    module("imagen_pytorch.t5", **t5)


if __name__ == "__main__":
    sys.exit(in_one_line(main))
