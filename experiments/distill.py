"""Distillation of any trained stage: one student for every guidance weight, then halvings of its network calls.

    imagen-video distill --config experiments/distill.py:SCALE --workdir DIR --config.teacher=WORKDIR

Paper section 2.7: 256 calls of the base and 128 of the others down to 8. Scales: tiny, mini (CPU), small (one GPU),
paper (TPU pod), the same as the teacher's. Numbers of rounds, updates and the range of weights are not published; the
learning rate that falls to 0 in every round, the updates of `paper`, and neither moving average nor warm-up are those
of Salimans & Ho 2022. An update costs a training step and two calls of the teacher.
"""

from ml_collections import ConfigDict

from experiments import scales

# first calls of the base and of the others; updates of the round that learns guidance and of each halving; their rates
ROUNDS = {
    "tiny": (16, 16, 40, 40, 1e-3, 1e-3),
    "mini": (256, 128, 600, 300, 1e-3, 2e-4),
    "small": (256, 128, 20_000, 10_000, 1e-4, 1e-4),
    "paper": (256, 128, 50_000, 50_000, 5e-5, 5e-5),
}


def get_config(scale: str = "mini"):
    scales.check(scale)
    base, others, guided, halved, rate, halving_rate = ROUNDS[scale]
    miniature = scale in ("tiny", "mini")
    return ConfigDict(
        {
            "scale": scale,
            # The workdir of the teacher. What is empty, or -1, below is as the teacher was trained.
            "teacher": "",
            "stage": "",  # the name of the teacher's stage, where it is to be checked
            "calls_base": base,
            "calls_others": others,
            "last_calls": 8,
            "guided_steps": guided,
            # A student of many calls starts nearly where it should end: at the rate of round 0 it only gets worse.
            "halving_rate": halving_rate,
            "steps": halved,
            "weights": (0.0, 15.0),  # the extremes of the paper's oscillation, and no guidance
            # A miniature's small networks and few updates cannot follow what clipping would cut off anyway.
            "weighting": "x_mse" if miniature else "snr_trunc",
            "clip": "dynamic" if miniature else "none",
            "data": "",
            "validation": "",
            "embeddings": "",
            "batch_size": -1,
            "image_batch_size": -1,
            "crop": "",
            "short": "",
            "readers": 0,
            "bad_share": 0.01,
            "seed": 0,
            "checkpoint_every": max(halved // 20, 50),
            "log_every": 10 if miniature else 100,
            "samples": True,  # at the end of each round
            "sample_every": 0,
            "evaluate_every": 0,  # 0: at the end of each round
            "keep": 1,
            "profile_steps": 0,
            "optimizer": {
                "name": "muon" if miniature else "adam",
                "learning_rate": rate,
                "warmup": 0,
                "decay": "linear",
                "clip": 1.0,
                "b1": 0.9,
                "b2": 0.99,
                "weight_decay": 0.0,
            },
            "step": {"ema_decay": 0.0, "image_weight": 0.5, "accumulate": -1},
            "mesh": scales.mesh(scale),
        }
    )
