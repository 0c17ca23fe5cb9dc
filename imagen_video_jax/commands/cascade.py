"""`imagen-video cascade`."""

TEXT = "Join trained stages, in order, into cascade.json."


def add_arguments(parser) -> None:
    parser.add_argument("--stage", action="append", required=True, metavar="WORKDIR", help="repeated, from the base on")
    parser.add_argument("--out", required=True, metavar="FILE")


def run(arguments, _) -> None:
    from imagen_video_jax.cascade import join

    joined = join(arguments.stage, arguments.out)
    print(f"{arguments.out}: {len(joined['stages'])} stages")
