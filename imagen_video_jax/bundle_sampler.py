"""Samples this bundle with jax, numpy, safetensors and flatbuffers, without the package that trained it.

    python sample.py EMBEDDINGS.npz VIDEOS.npz [SEED]

EMBEDDINGS.npz: `embeddings` (N, L, D) and `mask` (N, L). VIDEOS.npz: `videos` (N, T, H, W, 3) uint8.
"""

import pathlib
import sys

import jax.export
import numpy as np
from safetensors.numpy import load_file


def main(embeddings, videos, seed="0"):
    root, weights = pathlib.Path(__file__).parent, {}
    program = jax.export.deserialize(bytearray((root / "programs" / "sampler.stablehlo").read_bytes()))
    for file in sorted(root.glob("*/*.safetensors")):
        weights.setdefault(file.parent.name, {}).update(load_file(file))
    with np.load(embeddings, allow_pickle=False) as given:
        text, mask = given["embeddings"].astype(np.float32), given["mask"].astype(bool)
    length = program.in_avals[-3].shape[1]  # tokens that the stages read
    missing = max(length - text.shape[1], 0)
    text = np.pad(text[:, :length], [(0, 0), (0, missing), (0, 0)])
    mask = np.pad(mask[:, :length], [(0, 0), (0, missing)])
    np.savez(videos, videos=program.call(weights, text, mask, np.uint32(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
