"""What is measured of a cascade: checkpoints x EMA x guidance x steps x samplers x seeds, every metric of every cell.

    imagen-video evaluate --config experiments/evaluate.py:SCALE --workdir DIR --config.cascade=FILE

The paper reports FVD, FID, CLIP score and CLIP R-precision of 4096 samples (section 3) and sweeps the guidance weight.
Scales differ in how many videos are sampled: tiny 4, mini 64 (a laptop), small 1024 (one GPU), paper 4096 (a pod, whose
hosts share the work: each samples with its own chips, which share the weights, and large frames in tiles). Start the
command again to go on, or with more values to add cells.
"""

from ml_collections import ConfigDict

from experiments import scales

# videos per cell, videos sampled at once, guidance weights, clips of the validation loss
SIZES = {
    "tiny": (4, 4, (0.0, 1.0), 4),
    "mini": (64, 8, (0.0, 1.0, 2.0, 4.0), 16),
    "small": (1024, 16, (0.0, 1.0, 3.0, 6.0, 10.0, 15.0), 64),
    "paper": (4096, 4, (0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 30.0), 256),
}


def get_config(scale: str = "mini"):
    scales.check(scale)
    videos, batch, guidance, loss_clips = SIZES[scale]
    paper = scale == "paper"
    return ConfigDict(
        {
            "cascade": "",  # cascade.json
            # What is swept, in the stage `vary` ("all": in every stage). Checkpoints are "cascade" (the one that
            # cascade.json names), "newest", "all" (with their training still running: follow_minutes) or step numbers.
            "vary": "base",
            "checkpoints": ("cascade",),
            "follow_minutes": 0.0,
            "ema": (True,),
            "guidance": guidance,
            "guidance_low": (-1.0,),  # the low value of weights that oscillate (1 in the paper); -1: constant weights
            "steps": (0,),  # network calls; 0: the stage's own
            "samplers": ("own",),
            "seeds": (0,),
            "stop_after": "",  # a stage's name, number or kind
            # What is sampled: a file of prompts, or captions of motion_shapes scenes, which the judge reads:
            # of split train, validation, held_out (combinations that training leaves out), or paraphrase (validation in
            # words that no caption uses).
            "prompts": "",
            "split": "validation",
            "videos": videos,
            "batch": batch,
            "mesh": {"data": 1, "fsdp": -1 if paper else 1, "tensor": 1, "frames": 1, "height": 1},  # of each process
            "tile": (0, 192, 320) if paper else (0, 0, 0),  # what the last stage is trained on
            "overlap": (0, 32, 32) if paper else (0, 0, 0),
            # What is measured: () is everything that has the weights it needs, and real videos of the same scenes.
            "metrics": (),
            "real": "",
            "frames": 16,
            "pool": 100,
            "loss_clips": loss_clips,
            "i3d": "",
            "inception": "",
            "clip": "",
            "shown": 4,  # videos per cell in report.html
            "wandb": "",  # a project's name
        }
    )
