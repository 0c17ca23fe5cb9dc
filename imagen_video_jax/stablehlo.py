"""A cascade as StableHLO programs (`jax.export`), which run without this package: one per denoiser, one for it all.

Weights are inputs, not part of a program, so a program is small and made from shapes alone. The batch size is left
open. Programs hold for the platforms they were lowered for; jax promises to read them for half a year.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import export

from imagen_video_jax import __version__, checkpoint, storage
from imagen_video_jax.errors import UserError
from imagen_video_jax.stages import conditioning
from imagen_video_jax.stages.stage import Conditions, Stage

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
FOLDER, SAMPLER, SIGNATURES = "programs", "sampler.stablehlo", "programs.json"


def check_serializable() -> None:
    """UserError where jax lacks what it writes programs with."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UserError("--programs needs the package flatbuffers: pip install flatbuffers") from None


def write_programs(folder: pathlib.Path, stages: dict[str, Stage], dtype: str, platforms: Sequence[str] = PLATFORMS):
    """Writes the programs and their signatures to `folder`.

    Args: stages by the name of their folder in the bundle, in order; dtype of the stored weights.
    """
    folder.mkdir()
    # A fused kernel would tie the programs to the machine that writes them.
    stages = {name: _with_products(stage) for name, stage in stages.items()}
    signatures = {"imagen_video_jax": __version__, "jax": jax.__version__, "platforms": list(platforms)}
    programs = {SAMPLER: _sampler(stages, dtype)}
    programs |= {f"{name}.stablehlo": _denoiser(stage, dtype) for name, stage in stages.items()}
    for name, (function, arguments) in programs.items():
        exported = export.export(jax.jit(function), platforms=platforms)(*arguments.values())
        (folder / name).write_bytes(exported.serialize())
        signatures[name] = {
            "inputs": {key: _describe(value) for key, value in arguments.items()},
            "output": _describe(exported.out_avals[0]),
        }
    storage.write_json(folder / SIGNATURES, signatures)


def _with_products(stage: Stage) -> Stage:
    network = dataclasses.replace(stage.config.network, attention="xla")
    return Stage(dataclasses.replace(stage.config, network=network), stage.tiling)


def _sampler(stages: dict[str, Stage], dtype: str):
    """(weights by folder, text, mask, seed) -> uint8 videos of the last stage; sample i of a batch has number i."""
    (batch,) = export.symbolic_shape("b")
    configs = [stage.config for stage in stages.values()]
    length, width = max(config.text_length for config in configs), configs[0].network.text_width

    def sample(weights, text_BLD, mask_BL, seed):
        video = None
        for name, stage in stages.items():
            video = stage.sample(
                _tree(stage, weights[name]),
                text_BLD=text_BLD[:, : stage.config.text_length],
                text_mask_BL=mask_BL[:, : stage.config.text_length],
                index_B=jnp.arange(text_BLD.shape[0]),
                seed=seed,
                low_BTHWC=video,
            )
        return jnp.clip(jnp.rint((video + 1.0) * 127.5), 0, 255).astype(jnp.uint8)

    return sample, {
        "weights": {name: _flat_shapes(stage, dtype) for name, stage in stages.items()},
        "embeddings": jax.ShapeDtypeStruct((batch, length, width), jnp.float32),
        "mask": jax.ShapeDtypeStruct((batch, length), jnp.bool_),
        "seed": jax.ShapeDtypeStruct((), jnp.uint32),
    }


def _denoiser(stage: Stage, dtype: str):
    """(weights, z, log-SNR, text, mask[, low video, its log-SNR][, student's guidance]) -> the estimate of x.

    The low-resolution video is at its own size and already has the noise that its log-SNR says.
    """
    config = stage.config
    (batch,) = export.symbolic_shape("b")
    arguments = {
        "weights": _flat_shapes(stage, dtype),
        "z": jax.ShapeDtypeStruct((batch, config.frames, config.height, config.width, 3), jnp.float32),
        "logsnr": jax.ShapeDtypeStruct((batch,), jnp.float32),
        "embeddings": jax.ShapeDtypeStruct((batch, config.text_length, config.network.text_width), jnp.float32),
        "mask": jax.ShapeDtypeStruct((batch, config.text_length), jnp.bool_),
    }
    if config.kind != "base":
        frames, height, width, _ = config.input_size
        arguments["low"] = jax.ShapeDtypeStruct((batch, frames, height, width, 3), jnp.float32)
        arguments["low_logsnr"] = jax.ShapeDtypeStruct((batch,), jnp.float32)
    if config.network.guidance:
        arguments["guidance"] = jax.ShapeDtypeStruct((batch,), jnp.float32)

    def denoise(weights, z_BTHWC, logsnr_B, text_BLD, mask_BL, *rest):
        (low_BTHWC, low_logsnr_B), mask_BT = rest[:2] if config.kind != "base" else (None, None), None
        guidance_B = rest[-1] if config.network.guidance else None
        if low_BTHWC is not None:
            low_BTHWC, mask_BT = conditioning.fit_to_target(
                config.kind, low_BTHWC, factor=config.factor, fill=config.fill
            )
        fps_B = jnp.full(logsnr_B.shape, config.fps, jnp.float32)
        conditions = Conditions(text_BLD, mask_BL, fps_B, low_BTHWC, low_logsnr_B, mask_BT, guidance_B)
        return stage.estimate(_tree(stage, weights), z_BTHWC, logsnr_B, conditions)

    return denoise, arguments


def _flat_shapes(stage: Stage, dtype: str) -> dict:
    flat = checkpoint.flatten(stage.network.abstract)
    return {name: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)) for name, leaf in flat.items()}


def _tree(stage: Stage, weights: dict):
    """The network's parameters from flat names, in their own type."""
    abstract = stage.network.abstract
    leaves = [weights[name].astype(leaf.dtype) for name, leaf in checkpoint.flatten(abstract).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _describe(value) -> str:
    if isinstance(value, dict):
        nested = isinstance(next(iter(value.values())), dict)
        return "stage folder -> tensor name -> array" if nested else "tensor name -> array"
    return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
