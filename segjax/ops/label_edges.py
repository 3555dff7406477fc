"""Where a label map changes: the pixels at which a translated image must keep the original's edges."""

import jax.numpy as jnp
from jax import lax

from segjax.typing import Array


def label_edges(label: Array, size: int = 5, threshold: float = 0.1) -> Array:
    """bool [B,H,W]: the label's Laplacian over size x size pixels exceeds `threshold`. label int [B,H,W], ids as they are, 255 too.

    The kernel is 1 around and 1 - size^2 in the centre, over the sum of its magnitudes; borders are mirrored. Ids are taken as numbers, so
    an edge between far ids is found wider than one between neighbours: kornia.laplacian of the ids, as DiGA's seg_edge_loss has it.
    """
    ids, reach = label.astype(jnp.int32), size // 2
    total = jnp.pad(ids, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    for axis in (1, 2):
        windows = [lax.slice_in_dim(total, k, k + ids.shape[axis], axis=axis) for k in range(size)]
        total = sum(windows[1:], start=windows[0])
    # whole numbers: |total - size^2 ids| / (2 size^2 - 2) > threshold without a rounding
    return jnp.abs(total - size * size * ids) > threshold * (2 * size * size - 2)
