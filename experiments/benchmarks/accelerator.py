"""Throughput and MFU of the train step on one accelerator, in bfloat16, against the same shapes in torch.

    python -m experiments.benchmarks.accelerator [--side jax] [--network small|paper|768,1536,3072] [--batch 32]

The base stage's real step (loss, gradients, clipping, Adam, average of the weights, guard) on a random batch of videos;
on the other side a plain torch U-Net of equal layers, compiled, with scaled_dot_product_attention and fused Adam. With
one --side: what it takes, and the row as one line of JSON. Without: both in turns, three rounds, and their ratio; the
small networks share the card and take turns round by round, larger ones have it one after the other.

    ms                step by step, each until it is done (median, fastest); back_to_back: many dispatched at once
    tflop_per_step    products and convolutions of the jaxpr, what remat repeats apart; the same number for both sides
    mfu               of the chip's published bfloat16 peak; share_of_matmul: of a product of 8192 measured just before
    program_gib       what the compiled program says it needs; peak_gib: what the allocator saw

Out of memory ends with one line and exit code 1. Have the card and its processors to yourself: programs that are
compiled on one card at once spoil each other's autotuning (on an H200 four were not ready after four minutes).
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys

from imagen_video_jax.commands.process import in_one_line
from imagen_video_jax.models.attention import KERNELS


def main() -> int:
    arguments = parse()
    if arguments.side:
        if arguments.side == "torch":
            os.environ["JAX_PLATFORMS"] = "cpu"  # the card is torch's; jax only counts
        return one_side(arguments)
    together = arguments.network == "small" or arguments.together
    return report(turns(together, arguments.rounds))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=("jax", "torch"), help="one side alone")
    parser.add_argument(
        "--network", default="small", help="small, paper (5.6B), or widths of its levels: 768,1536,3072"
    )
    parser.add_argument("--blocks", type=int, default=3, help="a level, where widths are given")
    parser.add_argument("--batch", type=int, default=0, help="clips (32 for small, 8 for larger ones)")
    parser.add_argument("--attention", default="auto", choices=KERNELS, help="kernel of the jax side")
    parser.add_argument("--frames", default="sdpa", choices=("sdpa", "products"), help="of the torch side, over frames")
    parser.add_argument("--remat", action="store_true", help="for small, too; larger networks have it")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, a round")
    parser.add_argument("--state-dtype", choices=("float32", "bfloat16"), help="of Adam's moments; large: bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="both on the card at a time, whatever the network")
    parser.add_argument("--tflop", type=float, default=0.0, help="per step, where it is known")
    parser.add_argument("--eager", action="store_true", help="torch without its compiler")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def one_side(arguments: argparse.Namespace) -> int:
    from experiments.benchmarks.sides import common

    work = common.workload(arguments)
    try:
        side = build(arguments, work)
        if arguments.serve:
            common.answer_rounds(side, arguments.seconds)
        else:
            common.show(common.timed(side, arguments.seconds))
    except Exception as error:
        if not common.out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0][:200]
        print(f"out of memory: {arguments.side}, network {work.name}, batch {work.batch}: {first}", file=sys.stderr)
        return 1
    return 0


def build(arguments: argparse.Namespace, work):
    from experiments.benchmarks.sides import jax_side

    if arguments.side == "jax":
        return jax_side.build(work)
    from experiments.benchmarks.sides import torch_side

    tflop = arguments.tflop or jax_side.step_flops(work) / 1e12
    return torch_side.build(work, tflop, products=arguments.frames == "products", compiled=not arguments.eager)


class Child:
    """One side in a process of its own, which times a round when it is told to."""

    def __init__(self, side: str, *, shared: bool, tflop: float = 0.0):
        # Asked for bit by bit, so that the other side finds memory.
        environment = os.environ | ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if shared else {})
        command = [sys.executable, "-m", "experiments.benchmarks.accelerator", *sys.argv[1:]]
        command += ["--side", side, "--serve", "--tflop", str(tflop)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.facts = self._answer()["ready"]

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
            print(line, end="", file=sys.stderr)
        raise SystemExit(self.process.wait() or 1)

    def time(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def turns(together: bool, rounds: int) -> list[tuple[dict, dict]]:
    """(jax's row, torch's row) of each round."""
    with contextlib.ExitStack() as stack:

        def started(side: str, tflop: float = 0.0) -> Child:
            child = Child(side, shared=together, tflop=tflop)
            stack.callback(child.end)
            return child

        ours = started("jax")
        if together:
            theirs = started("torch", ours.facts["tflop_per_step"])
            return [(ours.time(), theirs.time()) for _ in range(rounds)]
        first = [ours.time() for _ in range(rounds)]
        ours.end()
        theirs = started("torch", ours.facts["tflop_per_step"])
        return list(zip(first, (theirs.time() for _ in range(rounds))))


def report(rows: list[tuple[dict, dict]]) -> int:
    from experiments.benchmarks.sides import common

    for row in rows[-1]:
        common.show(row)
        print()
    for pair in rows:
        print(json.dumps({row["side"]: row["ms_back_to_back"] for row in pair}))
    ratios = [theirs["ms_back_to_back"] / ours["ms_back_to_back"] for ours, theirs in rows]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"jax is {statistics.median(ratios):.2f} times as fast as torch (rounds {each})")
    print(json.dumps({"ratio": round(statistics.median(ratios), 3), "jax": rows[-1][0], "torch": rows[-1][1]}))
    return 0


if __name__ == "__main__":
    sys.exit(in_one_line(main))
