"""The yardstick of `scripts/bench_contrastive.py`: all similarities at once, by autodiff, as the references write it (SupContrast)."""

import jax
import jax.numpy as jnp


def supervised_contrastive(anchors, keys, anchor_label, key_label, *, temperature, form):
    similarity = anchors @ keys.T / temperature
    similarity = similarity - jax.lax.stop_gradient(similarity.max(1, keepdims=True))
    valid = key_label != 255
    same = (anchor_label[:, None] == key_label) & valid
    power = jnp.exp(similarity) * valid
    if form == "all":
        log_prob = similarity - jnp.log(power.sum(1, keepdims=True))
    else:
        log_prob = similarity - jnp.log(power + (power * ~same).sum(1, keepdims=True))
    each = (same * log_prob).sum(1) / jnp.maximum(same.sum(1), 1)
    counts = anchor_label != 255
    return -(counts * each).sum() / counts.sum()
