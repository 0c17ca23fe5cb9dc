"""Stage 2, temporal super-resolution: 16 -> 32 frames of 24x40, 6 fps (paper fig. 6; 1.7B parameters).

    imagen-video train --config experiments/temporal_sr_32f_24x40.py:SCALE --workdir DIR

Scales: tiny, mini (CPU), small (one GPU), paper (TPU pod); see scales.py.
"""

from experiments import defaults


def get_config(scale: str = "mini"):
    return defaults.training("temporal_sr_32f_24x40", scale)
