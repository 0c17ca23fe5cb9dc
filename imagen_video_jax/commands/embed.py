"""`imagen-video embed`."""

import pathlib

from imagen_video_jax.commands import parsing
from imagen_video_jax.commands.process import until_sigterm, use_compilation_cache
from imagen_video_jax.errors import UserError

TEXT = "Embed the captions of data sets into a cache, or prompts into an .npz file."


def add_arguments(parser) -> None:
    parser.add_argument("--data", action="append", metavar="DIR", help="data whose captions go into --out; repeatable")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    parser.add_argument("--ids", metavar="FILE.npy", help="token numbers, int32 (N, L), padding 0")
    parser.add_argument("--encoder", choices=("minilm", "t5"), default="minilm")
    parser.add_argument("--weights", default="", metavar="PATH", help="T5: T5X checkpoint or safetensors")
    parser.add_argument("--vocabulary", default="", metavar="FILE", help="T5: spiece.model")
    parser.add_argument("--max-length", type=int, default=0, metavar="N", help="tokens a prompt is cut to")
    parser.add_argument("--out", metavar="DIR", help="embedding cache; several processes may fill one")
    parser.add_argument("--beam", metavar="OPTIONS", help="with --data: as an Apache Beam pipeline with these options")
    parser.add_argument("--npz", metavar="FILE", help="arrays embeddings (N, L, D) and mask (N, L)")


def run(arguments, _) -> int:
    return until_sigterm(lambda: _embed(arguments))


def _embed(arguments) -> None:
    from imagen_video_jax import distributed, storage
    from imagen_video_jax.data import embed_captions
    from imagen_video_jax.text.embed import EncoderConfig, open_encoder

    data, prompts, ids, out, npz = (getattr(arguments, n) for n in ("data", "prompts", "ids", "out", "npz"))
    if sum(map(bool, (data, prompts, ids))) != 1 or bool(out) == bool(npz):
        raise UserError("give one of --data, --prompts and --ids, and one of --out DIR and --npz FILE")
    if (data and npz) or (ids and out):
        raise UserError("--data goes into --out DIR, --ids go into --npz FILE")
    if arguments.beam is not None and not data:
        raise UserError("--beam embeds --data DIR; prompts and token numbers are embedded on one machine")
    if arguments.max_length < 0:
        raise UserError(f"--max-length must be at least 1, got {arguments.max_length}")
    config = EncoderConfig(arguments.encoder, arguments.weights, arguments.vocabulary, arguments.max_length)
    if arguments.beam is not None:
        from imagen_video_jax.data import beam_pipelines

        count = beam_pipelines.embed(data, pathlib.Path(out), config, arguments.beam)
        print(f"{out}: {count} captions embedded by the pipeline")
        return
    lines = parsing.lines(prompts) if prompts else None
    if npz:
        storage.check_writable(pathlib.Path(npz).parent)
    use_compilation_cache()
    share = distributed.start()
    encoder = open_encoder(config)
    if out:
        if data:
            count = embed_captions.embed_data(data, pathlib.Path(out), encoder, share=share)
        else:
            count = embed_captions.embed_all(lines, pathlib.Path(out), encoder, share=share)
        print(f"{out}: {count} captions embedded by this process")
    elif ids:
        embed_captions.embed_ids_to_npz(pathlib.Path(ids), encoder, pathlib.Path(npz))
    else:
        embed_captions.embed_prompts_to_npz(lines, encoder, pathlib.Path(npz))
