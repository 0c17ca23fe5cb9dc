"""What one process of test_t5_load_memory.py does: loads its share and prints by how much its peak memory rose.

usage: python tests/text/load_share.py CHECKPOINT, with the variables of jax.distributed set
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from imagen_video_jax import distributed, partitioning
from imagen_video_jax.partitioning import MeshShape
from imagen_video_jax.text.t5_weights import open_weights


def resident(field: str) -> int:
    """Bytes of memory that this process holds (VmRSS), or held at most (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


distributed.start()
mesh = partitioning.make_mesh(MeshShape(data=1, fsdp=jax.device_count()))
weights = open_weights(sys.argv[1])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
before = resident("VmRSS")
params = jax.block_until_ready(weights.load(jnp.float32, mesh))
share = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
print(json.dumps({"share": share, "rise": resident("VmHWM") - before}))
