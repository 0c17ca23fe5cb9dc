"""Samples this bundle with jax, numpy, safetensors and flatbuffers, without the package that trained it.

    python sample.py EMBEDDINGS.npz VIDEOS.npz [SEED]

EMBEDDINGS.npz: `embeddings` (N, L, D) and `mask` (N, L). VIDEOS.npz: `videos` (N, T, H, W, 3) uint8.
"""

import argparse
import hashlib
import pathlib
import sys

import jax.export
import numpy as np
from safetensors.numpy import load


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", metavar="EMBEDDINGS.npz")
    parser.add_argument("videos", metavar="VIDEOS.npz")
    parser.add_argument("seed", nargs="?", type=int, default=0)
    given = parser.parse_args(arguments)
    if not 0 <= given.seed < 2**32:
        parser.error(f"SEED must be from 0 to {2**32 - 1}, got {given.seed}")
    root = pathlib.Path(__file__).parent
    program = jax.export.deserialize(bytearray(intact(root, "programs/sampler.stablehlo")))
    weights = {}
    for file in sorted(root.glob("*/*.safetensors")):
        weights.setdefault(file.parent.name, {}).update(load(intact(root, file.relative_to(root).as_posix())))
    with np.load(given.embeddings, allow_pickle=False) as arrays:
        text, mask = arrays["embeddings"].astype(np.float32), arrays["mask"].astype(bool)
    if text.ndim != 3 or not len(text) or mask.shape != text.shape[:2]:
        sys.exit(f"error: expected embeddings (N, L, D) and mask (N, L), got {text.shape} and {mask.shape}")
    length = program.in_avals[-3].shape[1]  # tokens that the stages read
    missing = max(length - text.shape[1], 0)
    text = np.pad(text[:, :length], [(0, 0), (0, missing), (0, 0)])
    mask = np.pad(mask[:, :length], [(0, 0), (0, missing)])
    np.savez(given.videos, videos=program.call(weights, text, mask, np.uint32(given.seed)))


def intact(root, name):
    """The bytes of a file of the bundle, as SHA256SUMS says that they are."""
    content = (root / name).read_bytes()
    if f"{hashlib.sha256(content).hexdigest()}  {name}" not in (root / "SHA256SUMS").read_text().splitlines():
        sys.exit(f"error: {root / name} is damaged: it is not what SHA256SUMS says")
    return content


if __name__ == "__main__":
    main()
