"""`imagen-video plan`."""

import json

from imagen_video_jax.commands.process import use_compilation_cache
from imagen_video_jax.errors import UserError

TEXT = "What a run needs on a TPU slice or GPUs: memory, FLOPs, time, cost; nothing is run."
TAKES_FIELDS = True  # --config.FIELD=VALUE


def add_arguments(parser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE.py[:SCALE]", help="a stage's experiment")
    parser.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="e.g. v5p:4x4x4, v5e:4x4, h200:8")
    parser.add_argument("--mode", default="train", choices=("train", "sample"), help="a step, or one denoiser call")
    parser.add_argument("--videos", type=int, default=0, help="sampled at once; default: one on each part of the batch")
    parser.add_argument("--price", type=float, help="of a chip for an hour")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="estimate without the TPU compiler (seconds; paper stages a minute or two); also GPUs",
    )
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.epilog = "Any field of the config is set as --config.FIELD=VALUE, e.g. --config.step.accumulate=4."


def run(arguments, overrides: list[str]) -> None:
    from imagen_video_jax import chips

    topology = chips.parse_topology(arguments.topology)
    if arguments.price is not None and not 0 <= arguments.price < float("inf"):
        raise UserError(f"--price must be at least 0, got {arguments.price}")
    if arguments.videos < 0:
        raise UserError(f"--videos must be at least 1, got {arguments.videos}")
    import jax

    # Nothing is computed: an accelerator of this machine is not touched.
    jax.config.update("jax_platforms", "cpu")
    from imagen_video_jax import configs, planning

    use_compilation_cache()
    request = planning.Request(
        config=configs.training(arguments.config, overrides),
        topology=topology,
        mode=arguments.mode,
        given=frozenset(override.removeprefix(configs.PREFIX).split("=")[0] for override in overrides),
        price=arguments.price,
        videos=arguments.videos,
    )
    report = {"config": arguments.config} | planning.plan(request, quick=arguments.quick)
    if arguments.json:
        print(json.dumps(report))
    else:
        _show(report)


def _show(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=f"{report['config']} · {report['mode']} · {report['topology']} ({report['source']})")
    for name, value in _rows(report):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", style="dim", markup=False)


def _rows(report: dict):
    from imagen_video_jax.planning import gib

    memory, quick, flops = report["bytes_per_chip"], report["quick_bytes_per_chip"], report["flops_per_chip"]
    yield "parameters", f"{report['parameters']:,}"
    yield "fits", "yes" if report["fits"] else f"no: {gib(report['missing_bytes_per_chip'])} a chip are missing"
    for name in ("arguments", "temporaries", "peak"):
        told = gib(memory[name]) if name in memory else "unknown"
        yield (
            f"{name} a chip",
            told + ("" if report["source"] == "quick" else f"   (quick estimate {gib(quick[name])})"),
        )
    if memory["waiting_batches"]:
        yield "batches that wait, a chip", gib(memory["waiting_batches"])
    yield "memory of a chip", gib(memory["memory"])
    again = (
        f", {flops['recomputed'] / max(flops['jaxpr'], 1):.0%} of it recomputed (remat)" if flops["recomputed"] else ""
    )
    yield "FLOPs a chip", f"{flops['jaxpr']:.3e}{again}"
    if flops["compiler"] is not None:
        yield "FLOPs, the compiler's count", f"{flops['compiler']:.3e}   (a loop's body once)"
    yield "bytes moved a chip", gib(report["bytes_moved_per_chip"])
    for kind, size in report["collective_bytes_per_chip"].items():
        yield f"{kind} a chip", gib(size)
    times = report["roofline"]
    each = ", ".join(f"{name} {times[name]:.3g} s" for name in ("compute", "memory", "links"))
    yield "time, at least", f"{report['roofline_seconds']:.3g} s, bound by {times['bound']}   ({each})"
    yield "MFU, at most", f"{report['mfu_bound']:.0%}"
    yield ("steps" if report["mode"] == "train" else "denoiser calls"), f"{report['steps']:,}"
    yield "chip-hours, at least", f"{report['chip_hours']:,.4g}"
    if "cost" in report:
        yield "cost, at least", f"{report['cost']:,.2f}"
    yield "mesh", ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1) or "one chip"
    for name in ("batch_size", "image_batch_size", "accumulate", "videos"):
        if name in report:
            yield name.replace("_", " "), str(report[name])
    for name, value in report["suggestions"].items():
        yield f"would fit: {name.replace('_', ' ')}", "none" if value in (None, False) else str(value)
