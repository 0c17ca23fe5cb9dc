"""Stage 5, temporal super-resolution: 32 -> 64 frames of 192x320, 12 fps (paper fig. 6; 780M parameters).

    imagen-video train --config experiments/temporal_sr_64f_192x320.py:SCALE --workdir DIR

Scales: tiny, mini (CPU), small (one GPU), paper (TPU pod); see scales.py.
"""

from experiments import defaults


def get_config(scale: str = "mini"):
    return defaults.training("temporal_sr_64f_192x320", scale)
