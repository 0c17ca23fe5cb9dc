"""Captions per second of the T5 encoder against transformers on torch, both in float32 on the same threads.

    pip install "imagen_video_jax[parity]"
    python -m experiments.benchmarks.t5_throughput [--captions 512] [--rounds 5] [--threads 2]

Random weights of T5 v1.1 base, the same on both sides; captions of 5 to 77 tokens, evenly mixed, in batches of 32.
transformers pads a batch to its longest caption, in the order given, as its users do; here captions of like length go
together. The two take turns, so that a busy machine disturbs both; medians and their ratio are printed, and how far the
states differ.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

from imagen_video_jax.commands.process import in_one_line

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    with tempfile.TemporaryDirectory() as folder:
        theirs = hugging_face_encoder(pathlib.Path(folder), arguments.threads)
        ours = our_encoder(folder)
        ids_BL = captions(arguments.captions)
        expected, found = theirs(ids_BL), ours(ids_BL)  # compiles, too
        print(f"largest difference {np.abs(expected - found).max():.1e}")
        times = {"transformers": [], "imagen_video_jax": []}
        for _ in range(arguments.rounds):
            for name, run in (("transformers", theirs), ("imagen_video_jax", ours)):
                began = time.perf_counter()
                run(ids_BL)
                times[name].append(time.perf_counter() - began)
    report(times, arguments.captions)


def captions(count: int) -> np.ndarray:
    """Token numbers (count, 77) of 5 to 77 tokens, padding 0."""
    rng = np.random.default_rng(0)
    ids_BL = rng.integers(2, 32000, (count, 77)).astype(np.int32)
    return ids_BL * (np.arange(77) < rng.integers(5, 78, count)[:, None])


def hugging_face_encoder(folder: pathlib.Path, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 2048, "num_layers": 12}
    config = transformers.T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **shape)
    model = transformers.T5EncoderModel(config).eval()
    model.save_pretrained(folder)

    def run(ids_BL: np.ndarray) -> np.ndarray:
        out_BLD = np.zeros((*ids_BL.shape, config.d_model), np.float32)
        for begin in range(0, len(ids_BL), BATCH):
            part = ids_BL[begin : begin + BATCH]
            part = part[:, : (part > 0).sum(1).max()]
            mask = part > 0
            with torch.inference_mode():
                ids, keys = torch.from_numpy(part).long(), torch.from_numpy(mask).long()
                states = model(input_ids=ids, attention_mask=keys).last_hidden_state.numpy()
            out_BLD[begin : begin + BATCH, : part.shape[1]] = states * mask[:, :, None]
        return out_BLD

    return run


def our_encoder(folder: str):
    from imagen_video_jax.text.embed import TextEncoder

    encoder = TextEncoder.t5(folder)
    return lambda ids_BL: encoder.embed_ids(ids_BL, batch_size=BATCH)[0]


def report(times: dict[str, list[float]], count: int) -> None:
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"{name}: {count / middle:.1f} captions/s (seconds {', '.join(f'{s:.2f}' for s in sorted(seconds))})")
    ratios = [a / b for a, b in zip(times["transformers"], times["imagen_video_jax"])]
    print(f"ratio {statistics.median(ratios):.2f} (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    sys.exit(in_one_line(main))
