"""Stage 4, spatial super-resolution: 48x80 -> 192x320, 32 frames (paper fig. 6; 1.2B parameters).

    imagen-video train --config experiments/spatial_sr_32f_192x320.py:SCALE --workdir DIR

Scales: tiny, mini (CPU), small (one GPU), paper (TPU pod); see scales.py.
"""

from experiments import defaults


def get_config(scale: str = "mini"):
    return defaults.training("spatial_sr_32f_192x320", scale)
