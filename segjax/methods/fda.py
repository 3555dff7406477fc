"""FDA: Fourier domain adaptation (Yang and Soatto, CVPR 2020, arXiv 2004.05498; code YanchaoYang/FDA).

L = CE(phi(x_s->t), y_s) + lambda_ent * mean rho(entropy(phi(x_t))), rho(x) = (x^2 + eps)^eta   (Eq. 3 to 6 of the paper)

where x_s->t carries the low-frequency amplitude of a target image. Everything, stylization included, is inside the step.
"""

import jax
import jax.numpy as jnp
import optax

from segjax.nets.apply import full_size_logits, to_float, train_forward
from segjax.ops.fourier import amplitude_transfer, amplitude_transfer_bands
from segjax.ops.photometric import color_jitter
from segjax.ops.pixel_losses import robust_entropy
from segjax.ops.supervised import supervised_loss
from segjax.runtime.state import TrainState
from segjax.runtime.update import apply_gradients, global_norm
from segjax.typing import Array, Batch, Frozen, Key, Method, Metrics


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    betas: tuple[float, ...] = (0.01,),
    variant: str = "centred",
    entropy_weight: float = 0.005,
    entropy_eta: float = 2.0,
    entropy_start: int = 0,
    entropy_normalizer: float | None = None,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    jitter: float = 0.0,
    ema_decay: float = 0.0,
) -> Method:
    """Stylized source with cross-entropy, target with robust entropy.

    betas: window sizes as a share of the shorter side; with several, each image draws one at every step (the paper trains one network
    a beta and averages them: that is one run a beta here). variant: "centred" as the paper and the numpy code (frequencies -b..b),
    or "corner" as the released training code (-b..b-1). entropy_weight, entropy_eta: lambda_ent and eta. entropy_start: first step
    with entropy (the code's switch2entropy). entropy_normalizer: divisor of the entropy, ln(num_classes) by default; the code's is
    2.9444 whatever the classes. The entropy is taken at the network's own stride, as the code does for DeepLab. Not in the paper:
    jitter, photometric jitter of both domains after stylization (0 for none), and ema_decay, > 0 predicts with averaged weights.

    The target passes through the network in training mode, after the source, so its statistics enter the running BatchNorm ones,
    as in the code; with `entropy_weight=0` the target is read for its amplitude alone, as in the paper's lambda_ent = 0 row.
    """

    def init(key: Key, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = model.init(init_key, to_float(batch["source_image"]), train=False)
        return TrainState.create(key, variables, optimizer, ema=ema_decay > 0)

    def stylize(source: Array, target: Array, key: Key) -> Array:
        target = target[jnp.arange(source.shape[0]) % target.shape[0]]
        if len(betas) == 1:
            return amplitude_transfer(source, target, betas[0], variant=variant)
        return amplitude_transfer_bands(source, target, betas, key, variant=variant)

    def jittered(key: Key, image: Array) -> Array:
        return color_jitter(key, image, brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 4) if jitter else image

    def entropy_loss(params, batch_stats, target: Array, key: Key) -> tuple[Array, dict]:
        outputs, batch_stats = train_forward(model, params, batch_stats, target, key)
        return jnp.mean(robust_entropy(outputs["logits"], eta=entropy_eta, normalizer=entropy_normalizer)), batch_stats

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        del frozen
        band_key, source_key, target_key, dropout_key, target_dropout_key = jax.random.split(state.step_key(), 5)
        target = to_float(batch["target_image"])
        stylized = jittered(source_key, stylize(to_float(batch["source_image"]), target, band_key))
        weight = jnp.where(state.step >= entropy_start, entropy_weight, 0.0)

        def loss(params):
            outputs, batch_stats = train_forward(model, params, state.batch_stats, stylized, dropout_key)
            total, metrics = supervised_loss(
                outputs, batch["source_label"], align_corners=model.align_corners, aux_weight=aux_weight, class_weights=class_weights
            )
            if entropy_weight:
                entropy, batch_stats = entropy_loss(params, batch_stats, jittered(target_key, target), target_dropout_key)
                total, metrics = total + weight * entropy, {**metrics, "loss/entropy": entropy}
            return total, (batch_stats, metrics)

        gradients, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(state.params)
        metrics = {**metrics, "gradient_norm": global_norm(gradients)}
        return apply_gradients(state, gradients, optimizer, batch_stats, ema_decay), metrics

    def predict(state: TrainState, frozen: Frozen, image: Array) -> Array:
        del frozen
        return full_size_logits(model, state.ema_variables, image)

    return Method(init, step, predict)
