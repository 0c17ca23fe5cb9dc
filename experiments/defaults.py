"""What all stages share where the paper is silent, and the full training config of one stage at one scale.

Every field that `imagen-video train --config.FIELD=VALUE` may set is here.
"""

from ml_collections import ConfigDict

from experiments import scales


def training(name: str, scale: str) -> ConfigDict:
    """The training experiment of stage `name` at `scale`."""
    scales.check(scale)
    steps, rate, warmup, decay, ema = scales.TRAINING[scale]
    index = scales.STAGES.index(name)
    batch = scales.BATCHES[scale][index]
    base, guided = index == 0, index < 3
    # The miniatures predict x itself: with few channels a pixel patch of noise, which v and epsilon ask for, is more
    # than the network can carry, a patch of picture is not (Li & He 2025).
    miniature = scale in ("tiny", "mini")
    calls = {"tiny": (4, 4), "mini": (32, 4)}.get(scale, (256, 128))
    config = ConfigDict(
        {
            "scale": scale,
            "stage": scales.stage(name, scale),
            "data": "",
            "validation": "",
            "embeddings": "",
            # The paper's T5-XXL needs --config.encoder.weights and .vocabulary, or embeddings made before.
            "encoder": {
                "name": "t5" if scale == "paper" else "minilm",
                "weights": "",
                "vocabulary": "",
                "max_length": 0,
            },
            "steps": steps,
            "max_seconds": 0.0,
            "batch_size": batch,
            "image_batch_size": batch if scale == "paper" and index > 4 else batch // 2,
            "crop": "centre",
            "short": "repeat",
            "buckets": (),
            "readers": 0,
            "bad_share": 0.01,
            "seed": 0,
            "checkpoint_every": max(steps // 20, 50),
            "log_every": 10 if miniature else 100,
            "sample_every": 0,
            "evaluate_every": 0,
            "keep": 3,
            "init_from": "",
            "profile_steps": 0,
            "optimizer": {
                # Muon needs about half of Adam's steps here; the paper's relatives use Adam.
                "name": "muon" if miniature else "adam",
                "learning_rate": rate,
                "warmup": warmup,
                "decay": decay,
                "clip": 1.0,
                "b1": 0.9,
                "b2": 0.99,
                "weight_decay": 0.0,
                "state_dtype": "float32",
            },
            "step": {
                "ema_decay": ema,
                "image_weight": 0.5,
                "accumulate": scales.parts(name, scale),
                "guard": {"in_a_row": 10, "roll_backs": 3, "spike_sigma": 10.0, "window": 100},
            },
            "deadlines": {
                "compile": 7200.0,
                "restore": 3600.0,
                "data": 1800.0,
                "step": 900.0,
                "look": 7200.0,
                "save": 3600.0,
            },
            "mesh": scales.mesh(scale),
            "sample_mesh": scales.sample_mesh(name, scale),
        }
    )
    config.stage.update(
        {
            "fill": "repeat",
            "blank_image": False,
            "prediction": "x" if miniature else "v",
            "residual": miniature and not base,
            # The paper's loss is the epsilon error of a v network. An error of x in strong noise is mostly of what no
            # network can know, such as a background that the caption does not name: the mini base, which starts from
            # one that learnt the rest, counts it the less the stronger the noise is (below a log-SNR of -2).
            "weighting": "sigmoid" if scale == "mini" and base else "x_mse" if miniature else "eps_mse",
            "sigmoid_bias": -2.0 if scale == "mini" and base else 0.0,
            "text_drop": 0.1,
            "augmentation_max": 0.1 if miniature else 1.0,
            # A clip of few pixels and one shape is still told apart in strong noise, where its frames agree on it (-2);
            # the mini base starts from a network that learnt that (experiments/miniature/grow.py), and learns outlines.
            "schedule": {
                "name": "cosine",
                "logsnr_min": -20.0,
                "logsnr_max": 20.0,
                "shift": {"tiny": -2.0, "mini": 0.5}.get(scale, 0.0) if base else 0.0,
            },
            "sampler": {
                "name": "ancestral" if scale in ("small", "paper") else "ddim",
                "steps": calls[0] if base else calls[1],
                "gamma": 0.1,
                "guidance": {"tiny": 1.0, "mini": 1.0 if base else 0.0}.get(scale, 15.0 if guided else 6.0),
                # A low value makes the weight oscillate (base and first two super-resolution stages); -1: constant.
                "guidance_low": 1.0 if guided and scale in ("small", "paper") else -1.0,
                "opening": 0.1,
                "interval": (0.0, 1.0),
                "rule": "cfg",
                "apg_parallel": 0.0,
                "apg_norm": 0.0,
                "apg_momentum": -0.5,
                "rescale": 0.0,
                "clip": "dynamic",
                "percentile": 99.5,
                "augmentation_snr": 20_000.0 if miniature else 5.0,
            },
        }
    )
    return config
