"""What the CamVid scripts draw on the device: random crops of images that lie there."""

import jax
import jax.numpy as jnp


def crops(key, crop: tuple[int, int], count: int, images, labels=None):
    """`count` random crops with random flips, on the device."""
    which, where, turn = jax.random.split(key, 3)
    index = jax.random.randint(which, (count,), 0, images.shape[0])
    room = jnp.asarray([images.shape[1] - crop[0] + 1, images.shape[2] - crop[1] + 1])
    corner = (jax.random.uniform(where, (count, 2)) * room).astype(int)
    flip = jax.random.bernoulli(turn, 0.5, (count,))

    def one(i, corner, flip):
        cut = lambda x: jax.lax.dynamic_slice_in_dim(jax.lax.dynamic_slice_in_dim(x[i], corner[0], crop[0]), corner[1], crop[1], axis=1)
        return [jnp.where(flip, cut(x)[:, ::-1], cut(x)) for x in (images, labels) if x is not None]

    return jax.vmap(one)(index, corner, flip)
