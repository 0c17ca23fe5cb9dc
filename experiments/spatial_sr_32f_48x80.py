"""Stage 3, spatial super-resolution: 24x40 -> 48x80, 32 frames (paper fig. 6; 1.4B parameters).

    imagen-video train --config experiments/spatial_sr_32f_48x80.py:SCALE --workdir DIR

Scales: tiny, mini (CPU), small (one GPU), paper (TPU pod); see scales.py.
"""

from experiments import defaults


def get_config(scale: str = "mini"):
    return defaults.training("spatial_sr_32f_48x80", scale)
