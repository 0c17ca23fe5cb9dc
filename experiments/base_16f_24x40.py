"""Stage 1, base: text -> 16 frames of 24x40 at 3 fps, temporal attention (paper fig. 6; 5.6B parameters).

    imagen-video train --config experiments/base_16f_24x40.py:SCALE --workdir DIR

Scales: tiny, mini (CPU), small (one GPU), paper (TPU pod); see scales.py.
"""

from experiments import defaults


def get_config(scale: str = "mini"):
    return defaults.training("base_16f_24x40", scale)
