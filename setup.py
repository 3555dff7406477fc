"""Packaging of segjax. Tool settings (ruff, pyright, pytest) live in pyproject.toml."""

from setuptools import find_packages, setup

EXTRAS = {
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "convert": ["torchfile>=0.1.0", "huggingface_hub>=1.0"],
    "wandb": ["wandb"],
    "test": ["pytest>=8.0", "pytest-xdist>=3.5", "torchfile>=0.1.0", "ruff>=0.9", "pyright[nodejs]==1.1.414", "cityscapesScripts>=2.2"],
}

setup(
    name="segjax",
    version="0.1.0",
    description="Domain-adaptive semantic segmentation in JAX: one compiled, sharded step.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["segjax", "segjax.*"]),
    package_data={"segjax": ["py.typed"], "segjax.verbs": ["templates/*"]},
    install_requires=[
        "jax>=0.10.0",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "ml_collections>=1.1.0",
        "tensorflow-datasets>=4.9.10",
        "transformers>=5.0",
        "diffusers>=0.40",
        "jinja2>=3.1",
        "safetensors>=0.6",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "pillow>=11.0",
        "absl-py>=2.1",
        "rich>=13.0",
        "tensorboardX>=2.6",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["segjax = segjax.cli:main"]},
)
