"""The miniature's base in two parts: first a network that draws patches of 2x2 pixels, then one that draws pixels.

What a word means, where things are and how they move is learnt at half the resolution, at half the price; the larger
network has the smaller one's levels as its lower levels, and learns what is above them (compare the progressive growing
of Karras et al. 2018).
"""

from collections.abc import Callable

import jax

# Fields of the training config of the smaller network, where they are not those of the experiment file.
SMALL = {
    "stage.network.patch": "2",
    "stage.network.channels": "(48,96)",
    "stage.network.blocks": "(1,1)",
    "stage.network.spatial_attention": "(False,True)",
    "stage.network.text_attention": "(True,True)",
    "stage.network.temporal": "(attention,attention)",
    "stage.schedule.shift": "-2.0",
    "stage.weighting": "x_mse",
}
# What the parts of the smaller network are called in the larger one; those that have no level keep their names.
_LOWER = {
    "down0_block0": "down1_block0",
    "down1_sample": "down2_sample",
    "down1_block0": "down2_block0",
    "up1_block0": "up2_block0",
    "up1_sample": "up2_sample",
    "up0_block0": "up1_block0",
}
_SHARED = ("middle", "noise_level1", "noise_level2", "pooled_text", "frame_rate", "frame_position", "joint1", "joint2")


def grown(small: dict) -> Callable[[dict], dict]:
    """Fresh params of the larger network -> the same with `small`'s, the trained smaller one's, in their places."""
    parts = _LOWER | {name: name for name in _SHARED}

    def start(fresh: dict) -> dict:
        return fresh | {
            new: jax.tree.map(lambda old, place: jax.device_put(old, place.sharding), small[name], fresh[new])
            for name, new in parts.items()
        }

    return start
