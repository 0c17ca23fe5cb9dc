"""Fills launch/PLANS.md: plans of the seven paper stages, cell by cell, each saved when it is done.

    python launch/plans.py --quick            # estimates, minutes; no TPU compiler
    python launch/plans.py --compiled         # the TPU compiler (extra `plan`), hours; stop it and start it at any time
    python launch/plans.py --check            # estimates against compiled peaks at small sizes
    python launch/plans.py                    # writes PLANS.md from what is there

A cell is what `imagen-video plan --json` prints, in launch/plans.jsonl; a cell that is there is not made again, unless
its `of` says of which older program it is.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

from imagen_video_jax import cli

HERE = pathlib.Path(__file__).parent
CELLS, TABLE = HERE / "plans.jsonl", HERE / "PLANS.md"
STAGES = (
    "base_16f_24x40", "temporal_sr_32f_24x40", "spatial_sr_32f_48x80", "spatial_sr_32f_192x320",
    "temporal_sr_64f_192x320", "temporal_sr_128f_192x320", "spatial_sr_128f_768x1280",
)  # fmt: skip
SLICES = ("v5p:4x4x4", "v5p:8x8x8", "v5e:16x16")
SMALL_BATCH = ("--config.batch_size=256", "--config.image_batch_size=256")
# Configurations at which the estimate is held against the compiler, on v5e:2x2. The factor of its temporaries was
# fitted to the first eight; the rest were compiled later.
FITTED = 8
# Those that showed what the model lacked.
RULES = tuple(
    (f"experiments/{STAGES[index]}.py:paper", "v5p:4x4x4", "--mode", mode)
    for mode, indices in {"sample": (0, 1, 2, 6), "train": (1, 2)}.items()
    for index in indices
)
HALF = (  # the miniature's base as it was when its cells were compiled, at half the resolution
    "--config.stage.network.patch=2", "--config.stage.network.channels=(48,96)", "--config.stage.network.blocks=(1,1)",
    "--config.stage.network.spatial_attention=(False,True)", "--config.stage.network.text_attention=(True,True)",
    "--config.stage.network.temporal=(attention,attention)",
)  # fmt: skip
CHECKS = (
    ("base_16f_24x40:tiny", "--config.image_batch_size=4"),
    ("base_16f_24x40:mini", *HALF),
    ("spatial_sr_32f_192x320:tiny", "--config.image_batch_size=4"),
    ("spatial_sr_32f_192x320:mini", "--config.batch_size=16", "--config.image_batch_size=8"),
    ("spatial_sr_128f_768x1280:mini", "--config.image_batch_size=4"),
    ("base_16f_24x40:tiny", "--config.stage.network.channels=(48,96)", "--config.batch_size=16",
     "--config.image_batch_size=8"),
    ("temporal_sr_64f_192x320:tiny",),
    ("spatial_sr_32f_48x80:tiny", "--config.batch_size=16", "--config.image_batch_size=8"),
    ("temporal_sr_32f_24x40:mini",),
    ("base_16f_24x40:mini", *HALF, "--mode", "sample", "--videos", "16"),
    ("spatial_sr_32f_48x80:mini", "--mode", "sample", "--videos", "8"),
)  # fmt: skip

# A program of the paper's size that the compiler gives up on.
BEYOND = ((f"experiments/{STAGES[0]}.py:paper", "v5e:16x16", "--mode", "train"),)


def cells(arguments) -> list[tuple[str, ...]]:
    """The arguments of `plan` for each wanted cell."""
    wanted = []
    stages = [(f"experiments/{stage}.py:paper", mode) for mode in ("train", "sample") for stage in STAGES]
    checks = [
        (f"experiments/{name.replace(':', '.py:')}", "v5e:2x2", *rest, "--config.optimizer.name=adam")
        for name, *rest in CHECKS
    ]
    if arguments.quick:
        for slice_ in SLICES:
            wanted += [(config, slice_, "--mode", mode, "--quick") for config, mode in stages]
        wanted += [(config, "v5p:4x4x4", "--mode", mode, "--quick", *SMALL_BATCH) for config, mode in stages[:7]]
        wanted += [(*cell, "--quick") for cell in checks]
    if arguments.compiled:
        wanted += [(config, "v5p:4x4x4", "--mode", mode) for config, mode in stages]
    if arguments.check:
        wanted += [*checks, *BEYOND]
    return wanted


def done() -> dict[tuple[str, ...], dict]:
    if not CELLS.exists():
        return {}
    rows = [json.loads(line) for line in CELLS.read_text().splitlines()]
    return {tuple(row["arguments"]): row for row in rows}


def make(cell: tuple[str, ...]) -> None:
    """Makes one plan and appends its row: estimates here, where a network is traced once, compiled ones apart."""
    config, topology, *rest = cell
    arguments = ["plan", "--json", "--config", config, "--topology", topology, *rest]
    out = io.StringIO()
    if "--quick" in rest:
        with contextlib.redirect_stdout(out):
            failed = cli.main(arguments)
    else:
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        command = [sys.executable, "-m", "imagen_video_jax", *arguments]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
        failed = run.returncode
        out.write(run.stdout)
    if failed:
        print(f"failed: {' '.join(cell)}", file=sys.stderr)
        return
    with CELLS.open("a") as file:
        file.write(json.dumps({"arguments": list(cell)} | json.loads(out.getvalue())) + "\n")
        file.flush()
        os.fsync(file.fileno())


def gib(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f}"


def row_of(cell: tuple[str, ...], found: dict | None) -> str:
    config, topology, *rest = cell
    stage, options = config.split("/")[1].replace(".py", ""), [part for part in rest if part.startswith("--config.")]
    name = " ".join([stage.removesuffix(":paper"), *(part.removeprefix("--config.") for part in options)])
    made = "quick" if "--quick" in rest else "compiled"
    if found is None:
        return f"| {name} | {topology} | {made} | **not filled yet** | | | | | | | |"
    made += older(found)
    memory, flops, times = found["bytes_per_chip"], found["flops_per_chip"], found["roofline"]
    own = [
        name, topology, made, "yes" if found["fits"] else "**no**", gib(memory.get("arguments")),
        gib(memory.get("temporaries")), f"{gib(memory['peak'])} of {gib(memory['memory'])}",
        f"{flops['jaxpr']:.2e} ({flops['recomputed'] / flops['jaxpr']:.0%})",
        f"{found['roofline_seconds']:.3g} ({times['bound']})", f"{found['mfu_bound']:.0%}", hours(found),
    ]  # fmt: skip
    return "| " + " | ".join(own) + " |"


def older(found: dict) -> str:
    return f" ({found['of']})" if "of" in found else ""


def hours(found: dict) -> str:
    """Chip-hours of the whole training (1M steps at batch 256), or of one run of the sampler."""
    if found["mode"] == "sample":
        return f"{found['chip_hours']:.3g} for {found['videos']}"
    steps = 1_000_000 if found["batch_size"] == 256 else 2_000_000
    return f"{steps * found['roofline_seconds'] * found['chips'] / 3600:,.0f}"


HEAD = (
    "| stage | slice | by | fits | arguments GiB | temporaries GiB | peak GiB | FLOPs (recomputed) | seconds, at least "
    "(bound) | MFU, at most | chip-hours, at least |\n|" + "---|" * 11
)


def write_table() -> None:
    found, wanted = done(), argparse.Namespace(quick=True, compiled=True, check=False)
    lines = ["# Plans of the paper's seven stages", "", __doc__.split("\n\n    ")[0].replace("Fills", "Made for"), ""]
    lines[2] = (
        "Written by `launch/plans.py`, which saves each cell in `plans.jsonl` when it is done and goes on where it "
        "stopped. All figures are per chip. *quick* is the estimate of `imagen-video plan --quick`; *compiled* is the "
        "TPU compiler's, ahead of time, on no TPU. Nothing here was run on a chip: seconds are a roofline, a bound "
        "that no program reaches."
    )
    for mode, title in (
        ("train", "Train step: chip-hours for 2M steps at batch 2048, or 1M at 256"),
        ("sample", "One denoiser call of sampling (with guidance): chip-hours of all calls, for so many videos"),
    ):
        lines += [f"## {title}", "", HEAD]
        lines += [row_of(cell, found.get(cell)) for cell in cells(wanted) if mode in cell and ":paper" in cell[0]]
        lines.append("")
    lines += [
        "## What chips send each other in a compiled program",
        "",
        "MiB that a chip receives in a step or a call. Sharded weights are gathered by all-gather; activations that "
        "are sharded along frames or height exchange their edges (collective-permute). Nothing is gathered where the "
        "last column says none. Gradients are scattered over fsdp in every part of a step (reduce-scatter), and each "
        "chip's share is summed over data once (all-reduce, received twice as a ring sends it).",
        "",
        *traffic_table(found),
        "",
        "## Estimate against compiler",
        "",
        "Peaks are the compiler's own count of what lives at once, on and beside the chip's memory. The estimate's one "
        "factor was fitted to the first eight rows, of an older step. Rows of *rules* showed what the model lacked: "
        "constants take nothing, a sampler's loop gathers sharded weights layer by layer, a train step gathers them "
        "before each pass, a softmax keeps its numerators beside the logits. Small programs live in fast memory, where "
        "the compiler is generous.",
        "",
        *check_table(found),
    ]
    TABLE.write_text("\n".join(lines) + "\n")


def traffic_table(found: dict) -> list[str]:
    """A row for every compiled program of the paper's sizes: what it receives, by kind of collective."""
    lines = ["| stage | slice | mode | mesh | received | all-gathers |", "|---|---|---|---|---|---|"]
    for cell in cells(argparse.Namespace(quick=False, compiled=True, check=False)):
        if cell not in found:
            continue
        row, stage = found[cell], cell[0].split("/")[1].replace(".py:paper", "")
        received = row["collective_bytes_per_chip"]
        parts = [f"{kind} {mib(size)}" for kind, size in received.items() if kind != "all-gather"]
        mesh = ", ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
        gathered = mib(received["all-gather"]) if "all-gather" in received else "none"
        lines.append(f"| {stage} | {cell[1]} | {row['mode']}{older(row)} | {mesh} | {', '.join(parts)} | {gathered} |")
    return lines


def check_table(found: dict) -> list[str]:
    """A row for every program that was compiled: its peak, and the estimate."""
    lines = [
        "| config | slice | peak, compiled | peak, quick | quick / compiled | used to fit |",
        "|---|---|---|---|---|---|",
    ]
    wanted = [*cells(argparse.Namespace(quick=False, compiled=False, check=True))]
    wanted += [cell for cell in cells(argparse.Namespace(quick=False, compiled=True, check=False)) if cell in found]
    for number, cell in enumerate(wanted):
        row, estimate = found.get(cell), found.get((*cell, "--quick"))
        rest = [part for part in cell[2:] if part != "--config.optimizer.name=adam"]
        head = f"| {' '.join((cell[0].split('/')[1].replace('.py', ''), *rest))} | {cell[1]} |"
        used = "yes" if number < FITTED else "rules" if cell in RULES else "no"
        if row is None or estimate is None:
            lines.append(f"{head} **not filled yet** | | | {used} |")
            continue
        compiled, quick = row["bytes_per_chip"]["peak"], estimate["bytes_per_chip"]["peak"]
        gave_up = " (gave up)" if row["flops_per_chip"]["compiler"] is None else ""
        lines.append(f"{head} {mib(compiled)}{gave_up}{older(row)} | {mib(quick)} | {quick / compiled:.2f} | {used} |")
    return lines


def mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("quick", "compiled", "check"):
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args()
    # Stage by stage, so that what was traced for one slice serves the others.
    for cell in sorted(cells(arguments), key=lambda cell: (SMALL_BATCH[0] in cell, cell[0], cell[2:4])):
        if "of" in done().get(cell, {"of": "nothing yet"}):
            print(" ".join(cell), flush=True)
            make(cell)
            write_table()
    write_table()


if __name__ == "__main__":
    main()
