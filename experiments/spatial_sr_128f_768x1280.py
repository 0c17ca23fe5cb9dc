"""Stage 7, spatial super-resolution: 192x320 -> 768x1280, 128 frames, no attention over space (paper fig. 6; 340M).

    imagen-video train --config experiments/spatial_sr_128f_768x1280.py:SCALE --workdir DIR

Scales: tiny, mini (CPU), small (one GPU), paper (TPU pod); see scales.py.
"""

from experiments import defaults


def get_config(scale: str = "mini"):
    return defaults.training("spatial_sr_128f_768x1280", scale)
