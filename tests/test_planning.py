"""`imagen-video plan`: estimates in seconds, one real compile, and what a wrong request is told."""

import json

import pytest

from imagen_video_jax import chips, compiling, configs, planning
from imagen_video_jax.cli import main
from imagen_video_jax.errors import WRONG_REQUEST, UserError
from imagen_video_jax.training.step import NOISE_LEVELS

BASE, LAST = "experiments/base_16f_24x40.py", "experiments/spatial_sr_128f_768x1280.py"


def plan(capsys, *arguments) -> dict:
    """The object that `plan --json` leaves alone on stdout."""
    assert main(["plan", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def request(config=f"{BASE}:tiny", topology="v5e:2x2", mode="train", overrides=(), given=()):
    training = configs.training(config, list(overrides))
    return planning.Request(training, chips.parse_topology(topology), mode, given=frozenset(given))


def test_a_quick_plan_states_parameters_memory_work_time_and_cost_as_plain_numbers(capsys):
    report = plan(
        capsys, "--config", f"{BASE}:tiny", "--topology", "v5e:2x2", "--quick", "--price", "1.5",
        "--config.optimizer.name=adam",
    )  # fmt: skip
    stage = configs.training(f"{BASE}:tiny").stage
    abstract = planning.stage_of(stage).network.abstract
    assert report["parameters"] == planning.parameter_count(abstract)
    assert report["fits"] is True
    memory = report["bytes_per_chip"]
    # Parameters, their mean and Adam's two moments, unsharded.
    assert memory["arguments"] > 4 * 4 * report["parameters"]
    assert memory["peak"] == memory["arguments"] + memory["temporaries"] < memory["memory"]
    assert report["roofline_seconds"] == max(report["roofline"][name] for name in ("compute", "memory", "links"))
    assert 0 < report["mfu_bound"] <= 1
    assert report["cost"] == pytest.approx(1.5 * report["steps"] * report["roofline_seconds"] * 4 / 3600)
    assert any("--config.image_batch_size=4" in note for note in report["notes"])


def test_gpus_are_planned_too_and_the_table_says_so(capsys):
    arguments = ["--config", f"{LAST}:tiny", "--topology", "h100:1", "--mode", "sample", "--quick"]
    assert main(["plan", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "h100:1" in shown
    assert "denoiser calls" in shown


def test_work_is_shared_by_chips_and_weights_by_those_along_fsdp():
    overrides = ["--config.batch_size=4", "--config.image_batch_size=4", "--config.optimizer.name=adam"]
    overrides += ["--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    alone, four = (planning.estimate_of(request(topology=f"h100:{n}", overrides=overrides)) for n in (1, 4))
    assert four.cost.flops == pytest.approx(alone.cost.flops / 4, rel=0.05)
    assert four.arguments < alone.arguments / 2
    assert not alone.collectives
    assert four.collectives["all-gather"] > 0


def test_weights_are_shared_by_a_divisor_of_the_slice_unless_the_mesh_is_given(capsys):
    whole, notes = planning.fit(request(f"{BASE}:paper", "v5p:4x4x4"))
    assert (planning.sizes_of(whole)[:2], notes) == ((4, 16), [])
    small, notes = planning.fit(request(f"{BASE}:paper", "v5p:2x2x2"))
    assert planning.sizes_of(small)[:2] == (1, 8)
    assert "--config.mesh.fsdp=8" in notes[0]
    sampled, notes = planning.fit(request(f"{BASE}:paper", "v5p:2x2x1", "sample"))
    assert planning.sizes_of(sampled)[:2] == (1, 4)
    assert "--config.sample_mesh.fsdp=4" in notes[0]
    with pytest.raises(UserError, match="makes 16 devices, v5p:2x2x2 has 8"):
        planning.fit(request(f"{BASE}:paper", "v5p:2x2x2", given=["mesh.fsdp"]))


def test_halving_the_examples_at_a_time_by_accumulation_needs_less_memory_and_as_many_flops():
    overrides = ["--config.batch_size=32", "--config.image_batch_size=16"]
    whole = planning.estimate_of(request(overrides=overrides))
    parts = planning.estimate_of(request(overrides=[*overrides, "--config.step.accumulate=4"]))
    assert parts.temporaries < 0.6 * whole.temporaries
    assert parts.cost.flops == pytest.approx(whole.cost.flops, rel=0.05)


def test_weights_are_gathered_in_every_pass_of_a_step_and_gradients_summed_over_data_once():
    def collectives(*overrides):
        mesh = ["--config.batch_size=32", "--config.mesh.data=2", "--config.mesh.fsdp=4"]
        return planning.estimate_of(request(topology="h100:8", overrides=[*mesh, *overrides])).collectives

    videos, both, parts, remat = (
        collectives(*overrides)
        for overrides in (
            ["--config.image_batch_size=0"],
            ["--config.image_batch_size=16"],
            ["--config.image_batch_size=0", "--config.step.accumulate=2"],
            ["--config.image_batch_size=0", "--config.stage.network.remat=True"],
        )
    )
    assert both == parts == videos | {kind: 2 * videos[kind] for kind in ("all-gather", "reduce-scatter")}
    assert remat == videos | {"all-gather": 2 * videos["all-gather"]}
    assert min(videos.values()) > 0


def test_what_does_not_fit_is_told_what_is_missing_and_what_would_fit(capsys, monkeypatch):
    wanted = ["--config.batch_size=32", "--config.image_batch_size=32", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    whole = planning.estimate_of(request(topology="v5e:1x1", overrides=wanted))
    memory = (whole.peak + whole.waiting) / 2
    monkeypatch.setitem(chips.CHIPS, "v5e", chips.Chip("v5e", 197e12, 0.8e12, memory, 2e11, 2, ()))
    report = plan(capsys, "--config", f"{BASE}:tiny", "--topology", "v5e:1x1", "--quick", *wanted)
    assert report["fits"] is False
    assert report["missing_bytes_per_chip"] == pytest.approx(memory)
    better = report["suggestions"]["smallest_slice"]
    parts = report["suggestions"]["smallest_slice_accumulate"]
    tried = planning.estimate_of(request(topology=better, overrides=[*wanted, f"--config.step.accumulate={parts}"]))
    assert tried.peak + tried.waiting <= memory


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_weights_that_are_too_large_for_a_chip_are_to_be_shared_by_more(mode, capsys, monkeypatch):
    wanted = ["--config.batch_size=8", "--config.image_batch_size=8", "--config.optimizer.name=adam"]
    field = "mesh" if mode == "train" else "sample_mesh"
    sizes = [
        planning.estimate_of(planning.fit(request(topology="h100:8", mode=mode, overrides=[*wanted, fsdp]))[0])
        for fsdp in (f"--config.{field}.fsdp={n}" for n in (2, 4))
    ]
    halved, quartered = (size.peak + size.waiting for size in sizes)
    assert quartered < halved
    monkeypatch.setitem(chips.CHIPS, "h100", chips.Chip("h100", 1e15, 3e12, (halved + quartered) / 2, 4e11, 1, ()))
    report = plan(capsys, "--config", f"{BASE}:tiny", "--topology", "h100:8", "--mode", mode, "--quick", *wanted)
    assert report["fits"] is False
    assert report["suggestions"]["fsdp"] == 4
    assert "accumulate" not in report["suggestions"]
    given = plan(
        capsys, "--config", f"{BASE}:tiny", "--topology", "h100:8", "--mode", mode, "--quick", *wanted,
        f"--config.{field}.data=8",
    )  # fmt: skip
    assert given["suggestions"].get("fsdp") is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v9:2x2"], ["v9:2x2", "known", "v5p", "h200"]),
        (["--topology", "v5e:2x2", "--config.mesh.data=3"], ["3 devices", "has 4"]),
        (["--topology", "v5e:2x2", "--config.batch_size=6"], ["batch_size 6", "divisible by 4"]),
        (["--topology", "v5e:2x2", "--mode", "sample", "--videos", "3"], ["--videos 3", "divisible by 4"]),
        (["--topology", "v5e:2x2", "--price", "-1"], ["--price", "-1"]),
        (["--topology", "v5e:2x2", "--config.batch_sizes=6"], ["batch_sizes", "batch_size"]),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_2(arguments, words, capsys):
    assert main(["plan", "--config", f"{BASE}:tiny", "--quick", "--json", *arguments]) == WRONG_REQUEST
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_without_the_tpu_compiler_the_extra_and_the_quick_way_are_named(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    assert main(["plan", "--config", f"{BASE}:tiny", "--topology", "v5e:2x2"]) == WRONG_REQUEST
    error = capsys.readouterr().err
    assert "imagen_video_jax[plan]" in error
    assert "--quick" in error


@pytest.mark.parametrize(
    ("words", "gib"),
    [
        ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm.", 21.5),
        (
            "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(16.00G) exceeds available HBM (15.75G). HLO module: jit_traced.",
            16.0 + 5.0,
        ),
        ("Ran out of memory on HBM in words that are not known yet.", None),
    ],
)
def test_what_the_compiler_gives_up_on_does_not_fit(words, gib, capsys, monkeypatch):
    found = compiling.too_large(f"RESOURCE_EXHAUSTED: {words}", arguments=5 << 30)
    assert found == compiling.TooLarge(None if gib is None else gib * 2**30, f"RESOURCE_EXHAUSTED: {words}")
    monkeypatch.setattr(planning, "_compile", lambda request: found)
    report = plan(capsys, "--config", f"{BASE}:tiny", "--topology", "v5e:2x2")
    assert report["fits"] is False
    assert report["bytes_per_chip"]["peak"] == (report["quick_bytes_per_chip"]["peak"] if gib is None else found.needed)
    assert words in report["notes"][-1]


def test_other_errors_of_the_compiler_are_not_taken_for_too_little_memory():
    assert compiling.too_large("RESOURCE_EXHAUSTED: no thread could be started", arguments=0) is None
    assert compiling.too_large("INTERNAL: Mosaic failed, hbm", arguments=0) is None


def test_a_real_compile_for_four_tpu_chips_says_what_the_quick_plan_estimates(capsys):
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install 'imagen_video_jax[plan]'")
    report = plan(capsys, "--config", f"{BASE}:tiny", "--topology", "v5e:2x2", "--config.optimizer.name=adam")
    assert report["source"] == "compiled"
    assert report["fits"] is True
    compiled, quick = report["bytes_per_chip"], report["quick_bytes_per_chip"]
    assert quick["arguments"] == pytest.approx(compiled["arguments"], rel=0.05)
    assert quick["peak"] == pytest.approx(compiled["peak"], rel=0.25)
    # The compiler also counts element-wise work.
    assert report["flops_per_chip"]["jaxpr"] == pytest.approx(report["flops_per_chip"]["compiler"], rel=0.2)
    # Summed over the four chips once, and nothing else: all gradients, the loss, and of videos and of images how many
    # count and, in all and at each noise level, the sum of losses and their number.
    numbers = 1 + 2 * (1 + 2 * (1 + len(NOISE_LEVELS)))
    assert report["collective_bytes_per_chip"]["all-reduce"] == 2 * 4 * (report["parameters"] + numbers)
