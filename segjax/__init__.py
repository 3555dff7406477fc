"""segjax: semantic segmentation across domains in JAX. See README.md for tasks and `python -m segjax --help` for verbs."""

__version__ = "0.1.0"
