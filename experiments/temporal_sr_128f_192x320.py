"""Stage 6, temporal super-resolution: 64 -> 128 frames of 192x320, 24 fps (paper fig. 6; 630M parameters).

    imagen-video train --config experiments/temporal_sr_128f_192x320.py:SCALE --workdir DIR

Scales: tiny, mini (CPU), small (one GPU), paper (TPU pod); see scales.py.
"""

from experiments import defaults


def get_config(scale: str = "mini"):
    return defaults.training("temporal_sr_128f_192x320", scale)
