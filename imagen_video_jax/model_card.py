"""The model card of a bundle: what it is, what it learnt from, how well it does, what it cannot do, how to run it."""

from imagen_video_jax import __version__

_HEAD = """---
library_name: imagen_video_jax
pipeline_tag: text-to-video
tags: [text-to-video, diffusion, jax]
---

# {title}

A text-to-video cascade of {count} diffusion models in the manner of
[Imagen Video](https://arxiv.org/abs/2210.02303), exported by imagen_video_jax {version}. It makes
{frames} frames of {height}x{width} at {fps:g} frames a second.
"""

_USE = """## Use

With the package:

    imagen-video sample --cascade FOLDER --prompt "a red circle moves left" --out videos
    imagen-video train --config FILE.py:SCALE --config.init_from=FOLDER --workdir DIR

Weights are safetensors (`safetensors.numpy.load_file`), one folder a stage. A tensor's name is the path of a parameter:
`down0_block1.residual.conv1.kernel` is the kernel of the first convolution in the second block on the way down, at the
highest resolution (level 0); `up` is the way up, `middle` between, `door_in` and `door_out` are the first and the last
convolution. Kernels are laid out (window..., input channels, output channels). `config.json` beside them has every
size. `sha256sum --check SHA256SUMS` verifies all other files.
"""

_PROGRAMS = """
Without the package, on CPU, GPU or TPU, with `pip install jax safetensors flatbuffers`:

    imagen-video embed --prompts FILE --npz embeddings.npz     # or any other source of the encoder's embeddings
    python sample.py embeddings.npz videos.npz 0

`programs/` holds the sampler and each stage's denoiser as StableHLO, `programs/programs.json` their inputs.
"""

_LIMITS = """## Limits

- It shows what its training data showed, with their biases; nothing filters prompts or videos.
- Videos carry a note of their making in their metadata, and no watermark in their pixels.
- Each super-resolution stage expects the output of the stage before it, at the sizes above.
"""


def model_card(title: str, entries: list[dict], encoder: dict, scores: dict[str, dict], about: str, programs: bool):
    """The card as Markdown.

    Args:
      entries: what `config.json` holds of each stage.
      scores: where from -> {metric: number}.
      about: what the person who exports has to say, Markdown.
    """
    last = entries[-1]["stage"]
    sizes = {name: last[name] for name in ("frames", "height", "width", "fps")}
    parts = [_HEAD.format(title=title, count=len(entries), version=__version__, **sizes)]
    parts += [about.strip() + "\n"] if about else []
    parts += [_stages(entries), _encoder(encoder), _training(entries), _scores(entries, scores)]
    parts += [_LIMITS, _USE + (_PROGRAMS if programs else "")]
    return "\n".join(parts)


def _table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(_cell(value) for value in line) + " |\n" for line in lines)


def _cell(value) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).replace("|", "\\|").split())


def _stages(entries: list[dict]) -> str:
    rows = []
    for entry in entries:
        stage, sampler = entry["stage"], entry["stage"]["sampler"]
        size = f"{stage['frames']} x {stage['height']} x {stage['width']} at {stage['fps']:g} fps"
        calls = f"{sampler['name']}, {sampler['steps']}"
        given = (entry.get("input") or {}).get("stage", "text alone")
        rows.append([stage["name"], stage["kind"], given, size, f"{entry['parameters']:,}", entry["step"], calls])
    header = ["stage", "kind", "input", "output", "parameters", "trained steps", "sampler, network calls"]
    return "## Stages\n\n" + _table(header, rows)


def _encoder(encoder: dict) -> str:
    if not encoder:
        return "## Text encoder\n\nNot recorded.\n"
    width, length = (encoder.get(name, "?") for name in ("width", "max_length"))
    return (
        f"## Text encoder\n\n{encoder['encoder']}, {width} wide, at most {length} tokens, fingerprint "
        f"`{encoder['fingerprint']}`. It is not part of this folder.\n"
    )


def _training(entries: list[dict]) -> str:
    rows = []
    for entry in entries:
        training = entry["training"]
        batch = f"{training.get('batch_size', '?')} + {training.get('image_batch_size', '?')}"
        rate = training.get("optimizer", {}).get("learning_rate", "?")
        hours = f"{training['seconds'] / 3600:.2g}" if "seconds" in training else "?"
        rows.append([entry["name"], training.get("data") or "not recorded", batch, rate, hours])
    header = ["stage", "data", "clips + images a step", "learning rate", "hours"]
    return "## Training\n\n" + _table(header, rows)


def _scores(entries: list[dict], scores: dict[str, dict]) -> str:
    rows = [[name, metric, value] for name, values in scores.items() for metric, value in values.items()]
    for entry in entries:
        held_out = entry["training"].get("held_out_loss")
        if held_out is not None:
            rows.append([entry["name"], "loss on held-out clips", held_out])
    text = _table(["measured by", "what", "value"], rows) if rows else "None were given at export.\n"
    return "## Scores\n\n" + text
