"""Random arrays that keep activations of a deep network near one, and the torch side of parity tests."""

import jax
import numpy as np
import pytest


def random_params(abstract, seed=0):
    """Kernels of variance 2 / inputs, variances in [0.5, 1.5], everything else small."""
    rng = np.random.default_rng(seed)

    def draw(where, leaf):
        name = where[-1].key
        if name == "variance":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if name == "scale":
            return rng.uniform(0.8, 1.2, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return rng.normal(0, spread, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def torch_or_skip():
    return pytest.importorskip("torch", reason="needs the parity extra: pip install -e .[parity]")


def flat(tree, prefix=""):
    """{"a.b": leaf} of a nested dict."""
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
