"""FDA: Fourier domain adaptation (Yang and Soatto, CVPR 2020, arXiv 2004.05498; code YanchaoYang/FDA).

L = CE(phi(x_s->t), y_s) + lambda_ent * mean rho(entropy(phi(x_t))), rho(x) = (x^2 + eps)^eta   (Eq. 3 to 6 of the paper)

where x_s->t carries the low-frequency amplitude of a target image. Everything, stylization included, is inside the step.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.nets.apply import in_turn, predictor, target_image, to_float, train_forward
from segjax.ops import photometric
from segjax.ops.fourier import Variant
from segjax.ops.pixel_losses import robust_entropy
from segjax.ops.pseudo_labels import confident_labels
from segjax.ops.resize import bilinear
from segjax.ops.stylize import in_the_look_of
from segjax.ops.supervised import supervised_terms
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import IGNORE, Array, Batch, Frozen, Key, Method, Metrics, Terms


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    betas: tuple[float, ...] = (0.01,),
    variant: Variant = "centred",
    stylized_share: float = 1.0,
    entropy_weight: float = 0.005,
    entropy_eta: float = 2.0,
    entropy_start: int = 0,
    entropy_normalizer: float | None = None,
    self_training_weight: float = 0.0,
    self_training_start: int = 0,
    self_training_threshold: float = 0.9,
    statistics: str = "joint",
    greyscale: bool = False,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    jitter: float = 0.0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> Method:
    """Stylized source with cross-entropy, target with robust entropy.

    betas: window sizes as a share of the shorter side; with several, each image draws one at every step (the paper trains one network
    a beta and averages them: that is one run a beta here), with none the source stays as it is. variant: "centred" as the paper and the
    numpy code (frequencies -b..b), or "corner" as the released training code (-b..b-1). entropy_weight, entropy_eta: lambda_ent and eta.
    entropy_start: first step with entropy (the code's switch2entropy). entropy_normalizer: divisor of the entropy, ln(num_classes) by
    default; the code's is 2.9444 whatever the classes. The entropy is taken at the network's own stride, as the code does for DeepLab.

    accumulate: parts that a batch is worked off in, for the memory of one (`runtime.update.descend`).

    The target passes through the network in training mode, after the source, so its statistics enter the running BatchNorm ones, as
    in the code (statistics="joint"); "target" keeps the target's alone. With neither entropy nor self-training the target is read
    for its amplitude alone, as in the paper's lambda_ent = 0 row, and "target" is refused.

    greyscale: the network sees the luma of every image (ITU-R 601, PIL's "L") three times, in training and in prediction. With betas=()
    this is model 1 of the two-model system (`segjax.methods.fda_contrastive`), whose released code means to do it but imports its colour
    data sets instead.

    Not in the paper, and off by default: stylized_share < 1 leaves the other source images as they are; jitter, photometric jitter of
    both domains after stylization; ema_decay > 0 predicts with averaged weights; self_training_weight > 0 adds from step
    self_training_start the cross-entropy of the (jittered) target against labels that the averaged network gives the clean target,
    where its probability reaches self_training_threshold: the paper's self-supervised stage made online, without its files and rounds.
    """
    for name, share in {"stylized_share": stylized_share, "self_training_threshold": self_training_threshold}.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"method.{name}={share}: expected 0 to 1")
    uses_target = entropy_weight > 0 or self_training_weight > 0
    if statistics not in ("joint", "target") or (statistics == "target" and not uses_target):
        raise ConfigError(f"method.statistics={statistics!r}: expected 'joint', or 'target' with entropy or self-training above 0")
    if self_training_weight > 0 and not ema_decay > 0:
        raise ConfigError("method.self_training_weight > 0 needs the averaged network that labels the target: set method.ema_decay=0.99")
    supervised = functools.partial(supervised_terms, align_corners=model.align_corners, aux_weight=aux_weight)
    look = photometric.greyscale if greyscale else (lambda image: image)

    def init(key: Key, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = model.init(init_key, to_float(batch["source_image"]), train=False)
        return TrainState.create(key, variables, optimizer, ema=ema_decay > 0)

    def jittered(key: Key, image: Array) -> Array:
        return (
            photometric.color_jitter(key, image, brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 4) if jitter else image
        )

    def teacher_label(state: TrainState, target: Array, size: tuple[int, int]) -> Array:
        outputs, _ = train_forward(model, state.ema_params, state.ema_batch_stats, target, None)  # the batch's own statistics, no dropout
        return confident_labels(bilinear(outputs["logits"], size, align_corners=model.align_corners), self_training_threshold)

    def target_terms(outputs: dict[str, Array], part: dict[str, Array], step: Array) -> Terms:
        entropy = robust_entropy(outputs["logits"], eta=entropy_eta, normalizer=entropy_normalizer)
        weight = jnp.where(step >= entropy_start, entropy_weight, 0.0)
        terms = {"loss/entropy": (weight * jnp.sum(entropy), jnp.asarray(entropy.size, jnp.float32))}
        if self_training_weight:
            weight = jnp.where(step >= self_training_start, self_training_weight, 0.0)
            terms |= supervised(outputs, part["target_label"], name="loss/self_training", weight=weight)
        return terms

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        del frozen
        style_key, source_jitter, target_jitter, dropout_key = jax.random.split(state.step_key(), 4)
        target = look(target_image(batch))
        source = look(to_float(batch["source_image"]))
        stylized = jittered(source_jitter, in_the_look_of(style_key, source, target, betas, variant=variant, share=stylized_share))
        inputs = {"source": stylized, "source_label": batch["source_label"]}
        if uses_target:
            inputs["target"] = jittered(target_jitter, target)
        share = {}
        if self_training_weight:
            inputs["target_label"] = teacher_label(state, target, (target.shape[1], target.shape[2]))
            share = {"self_training/share": jnp.mean(inputs["target_label"] != IGNORE, dtype=jnp.float32)}

        def terms(params, part, batch_stats, key):
            names = ("source", "target") if uses_target else ("source",)
            kept = names if statistics == "joint" else ("target",)
            outputs, batch_stats = in_turn(model, params, batch_stats, {name: part[name] for name in names}, key, kept=kept)
            found = supervised(outputs["source"], part["source_label"], class_weights=class_weights)
            return (found | target_terms(outputs["target"], part, state.step) if uses_target else found), batch_stats

        state, metrics = descend(state, terms, inputs, optimizer, key=dropout_key, ema_decay=ema_decay, accumulate=accumulate)
        return state, metrics | share

    return Method(init, step, predictor(model, look))
