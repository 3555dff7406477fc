"""CLIP: a vision tower and a text tower with one space of embeddings (Radford et al. 2021, arXiv 2103.00020)."""

from segjax.nets.clip_text import TextTransformer as TextTransformer
