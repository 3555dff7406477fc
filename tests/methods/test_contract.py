"""What every training method must do, on a tiny network: finite, falling loss, any mesh, restart = no restart, predict's shape."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.methods import adabn, diga_selftrain, diga_warmup, fda, fda_contrastive, source_only
from segjax.nets.deeplab import DeepLabV2
from segjax.nets.layers import BatchNorm, ChannelDropout, Conv
from segjax.runtime import mesh as meshes
from segjax.runtime.compile import compile_step
from segjax.runtime.optim import make_optimizer
from segjax.typing import IGNORE


class Tiny(nn.Module):
    """Stride 2, BatchNorm, dropout, an auxiliary head: every path of a method in a second of compilation."""

    num_classes: int = 5
    align_corners: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image, train=False):
        to = {"dtype": self.dtype}
        x = nn.relu(BatchNorm(name="norm1", **to)(Conv(16, (3, 3), 2, name="conv1", **to)(image), train))
        aux = Conv(self.num_classes, (1, 1), name="aux")(x)
        x = ChannelDropout(0.1)(nn.relu(BatchNorm(name="norm2", **to)(Conv(16, name="conv2", **to)(x), train)), train)
        return {"logits": Conv(self.num_classes, (1, 1), name="last")(x), "aux_logits": aux, "features": x}


def optimizer(lr=0.05):
    return make_optimizer(name="sgd", lr=lr, momentum=0.9, weight_decay=5e-4, schedule="poly", power=0.9, total_steps=100)


FULL = dict(
    betas=(0.05, 0.2),
    stylized_share=0.5,
    entropy_start=2,
    jitter=0.3,
    ema_decay=0.9,
    self_training_weight=1.0,
    self_training_start=3,
    self_training_threshold=0.3,
    statistics="target",
)
CONTRASTIVE = dict(
    beta=0.1,
    contrast_weight=0.1,
    projection=8,
    embedding="features",
    sampling="balanced",
    samples=40,
    keys="batch",
    memory=400,
    form="all",
    target_ce_weight=1.0,
    target_ce_view="target",
    ema_decay=0.9,
)
WARMUP = dict(
    beta=0.1,
    view_share=0.3,
    chain="synthia",
    hard=(0.7, 500),
    ema_decay=0.9,
    predicts="teacher",
    faithful_view=True,
    faithful_statistics=True,
    faithful_teacher=True,
)
# Class mixing and hard pixels are the warm-up's as well, and once is enough.
SELFTRAIN = {key: value for key, value in WARMUP.items() if key not in ("faithful_statistics", "hard")}
SELFTRAIN |= {"second_view": "translated", "centroid_momentum": 0.1, "mix_weight": 0.5}
METHODS = {
    "source_only": lambda: source_only.make(model=Tiny(), optimizer=optimizer()),
    "source_only_ema_jitter": lambda: source_only.make(model=Tiny(), optimizer=optimizer(), jitter=0.4, ema_decay=0.9),
    "fda": lambda: fda.make(model=Tiny(), optimizer=optimizer(), betas=(0.1,)),
    "fda_corner_no_entropy": lambda: fda.make(model=Tiny(), optimizer=optimizer(), betas=(0.1,), variant="corner", entropy_weight=0.0),
    "fda_everything": lambda: fda.make(model=Tiny(), optimizer=optimizer(), **FULL),
    "model1": lambda: fda.make(model=Tiny(), optimizer=optimizer(), betas=(), greyscale=True),
    "fda_contrastive": lambda: fda_contrastive.make(model=Tiny(), optimizer=optimizer(), beta=0.1, samples=64, contrast_weight=0.1),
    "fda_contrastive_everything": lambda: fda_contrastive.make(model=Tiny(), optimizer=optimizer(), **CONTRASTIVE),
    "diga_warmup": lambda: diga_warmup.make(model=Tiny(), optimizer=optimizer(), beta=0.1),
    "diga_warmup_faithful": lambda: diga_warmup.make(model=Tiny(), optimizer=optimizer(), **WARMUP),
    "diga_selftrain": lambda: diga_selftrain.make(model=Tiny(), optimizer=optimizer(0.02), beta=0.1, second_view="translated"),
    "diga_selftrain_faithful": lambda: diga_selftrain.make(model=Tiny(), optimizer=optimizer(0.02), **SELFTRAIN),
    "adabn": lambda: adabn.make(model=Tiny(), optimizer=optimizer()),
}
CENTROIDS = {
    "centroids": np.random.default_rng(5).normal(size=(5, 16)).astype(np.float32),
    "counts": np.array([9, 9, 0, 9, 9], np.float32),
}


def frozen_of(name):
    return {"centroids": CENTROIDS} if name.startswith("diga_selftrain") else ()


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def make_batch():
    """Labels that the image tells (its brightest band), so that a loss can fall; 255 in a border."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, size=(8, 4, 6)).repeat(6, 1).repeat(6, 2).astype(np.uint8)
    image = (label[..., None] * 50 + rng.integers(0, 30, size=(8, 24, 36, 3))).astype(np.uint8)
    label[:, :2] = IGNORE
    return {
        "source_image": image,
        "source_label": label,
        "target_image": (image[::-1] // 2 + 20).astype(np.uint8),
        "target_label": label[::-1],
    }


@functools.cache
def made(name):
    """A method of the table, made once: what was compiled for it serves every test."""
    return METHODS[name]()


PROGRAMS = {}
"""Method, mesh and shapes -> the state's shardings, the compiled step; without a mesh, the jitted init."""


def programs(method, batch, mesh, frozen):
    key = method, mesh, jax.tree.structure((batch, frozen)), tuple(x.shape for x in jax.tree.leaves((batch, frozen)))
    if key not in PROGRAMS:
        abstract = jax.eval_shape(method.init, jax.random.key(3), batch)
        shardings = meshes.shard_rules(abstract, mesh, min_size=64)
        spec = meshes.with_shardings(abstract, shardings)
        compiled, _ = compile_step(method, spec, frozen, meshes.batch_spec(batch, mesh), mesh)
        PROGRAMS[key] = shardings, compiled
    return PROGRAMS[key]


copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
"""A step is donated what it gets."""


def fresh(method, batch):
    """The method's first state, of a program for one device: it serves every mesh."""
    key = method, jax.tree.structure(batch), tuple(x.shape for x in jax.tree.leaves(batch))
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(method.init)
    return PROGRAMS[key](jax.random.key(3), batch)


def run(method, batch, steps, mesh, state=None, frozen=()):
    """`steps` steps on `mesh` by the compiled, donated step; the state and one dict of floats a step."""
    frozen = jax.device_put(frozen, meshes.replicated(mesh))
    shardings, compiled = programs(method, batch, mesh, frozen)
    state = jax.device_put(fresh(method, batch) if state is None else state, shardings)
    history = []
    for _ in range(steps):
        state, metrics = compiled(state, frozen, meshes.put_batch(batch, mesh))
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


LEARNS = ("source_only", "fda", "fda_everything", "fda_contrastive", "fda_contrastive_everything", "diga_warmup", "diga_selftrain")
MESHES = {name: (4, 2) for name in LEARNS[:2] + LEARNS[3:5]} | {"fda_everything": (8, 1)}
"""Data and model parts; of (4, 2) test_budget.py reads the same programs. The rest: (2, 4)."""


@functools.cache
def lesson(name):
    """(states before and after each step, one dict of floats a step) on one device, for every test of a method."""
    states, rows, batch, mesh = [fresh(made(name), make_batch())], [], make_batch(), meshes.make_mesh(1)
    for _ in range(24 if name in LEARNS else 10):
        state, row = run(made(name), batch, 1, mesh, state=copied(states[-1]), frozen=frozen_of(name))
        states, rows = [*states, state], rows + row
    return states, rows


@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_give_what_one_gives(name, batch):
    # A temperature of .07, or labels that an argmax makes, multiply rounding step by step: fewer steps, and room for single weights.
    steps, room = (4, 5e-4) if name.startswith(("fda_contrastive", "diga")) else (10, 3e-4)
    states, history = lesson(name)
    assert all(np.isfinite(value) for row in history for value in row.values())
    one = states[steps]
    assert int(one.step) == steps
    mesh = meshes.make_mesh(*MESHES.get(name, (2, 4)))
    many, other = run(made(name), batch, steps, mesh, frozen=frozen_of(name))
    for n, (mine, theirs) in enumerate(zip(history[:steps], other, strict=True)):
        for key in mine:
            if key.startswith("loss"):  # rounding grows with the steps, and where colours are jittered
                near = dict(rel=1e-5, abs=1e-5) if n < 5 and "jitter" not in name else dict(abs=5e-5)
                assert mine[key] == pytest.approx(theirs[key], **near), (key, n)
    for a, b in zip(jax.tree.leaves((one.params, one.batch_stats)), jax.tree.leaves((many.params, many.batch_stats)), strict=True):
        np.testing.assert_allclose(a, b, atol=room)


def test_a_state_begins_the_same_on_every_mesh(batch):
    """With all that a state may hold: a head of its own, a bank, a teacher."""
    method, mesh = made("fda_contrastive_everything"), meshes.make_mesh(2, 4)
    shardings = meshes.shard_rules(jax.eval_shape(method.init, jax.random.key(3), batch), mesh, min_size=64)
    many = jax.jit(method.init, out_shardings=shardings)(jax.random.key(3), batch)
    for a, b in zip(jax.tree.leaves(fresh(method, batch).replace(key=0)), jax.tree.leaves(many.replace(key=0)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", LEARNS)
def test_loss_falls_on_a_fixed_batch_and_predict_has_the_images_size(name, batch):
    states, history = lesson(name)
    assert np.mean([row["loss/ce"] for row in history[-3:]]) < 0.8 * history[0]["loss/ce"]
    logits = jax.eval_shape(made(name).predict, states[-1], (), batch["source_image"])
    assert logits.shape == (8, 24, 36, 5) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", ["fda_everything", "fda_contrastive_everything", "diga_warmup_faithful", "diga_selftrain_faithful"])
def test_restart_equals_no_restart(name, batch):
    states, _ = lesson(name)
    resumed, _ = run(made(name), batch, 2, meshes.make_mesh(1), state=copied(states[2]), frozen=frozen_of(name))
    for a, b in zip(jax.tree.leaves(states[4].replace(key=0)), jax.tree.leaves(resumed.replace(key=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_entropy_and_self_training_wait_for_their_steps(batch):
    """FULL's two terms begin at steps 2 and 3; without them the step is the same until then, and another after."""
    without = fda.make(model=Tiny(), optimizer=optimizer(), **{**FULL, "entropy_weight": 1e-30, "self_training_weight": 1e-30})
    state, states = None, lesson("fda_everything")[0]
    for steps, same in ((2, True), (1, False)):
        state, _ = run(without, batch, steps, meshes.make_mesh(1), state=state)
        pairs = zip(jax.tree.leaves(states[int(state.step)].params), jax.tree.leaves(state.params), strict=True)
        assert all(np.allclose(x, y, rtol=0, atol=1e-6) for x, y in pairs) == same


class Plain(nn.Module):
    """No BatchNorm and no dropout: microbatches must give the whole batch's step to rounding."""

    num_classes: int = 5
    align_corners: bool = False

    @nn.compact
    def __call__(self, image, train=False):
        return {"logits": Conv(self.num_classes, (1, 1), name="last")(nn.relu(Conv(8, (3, 3), 2, name="conv1")(image)))}


@pytest.mark.parametrize("kind", ["source_only", "fda"])
def test_accumulation_gives_the_whole_batchs_step(kind, batch):
    batch = {**batch, "source_label": batch["source_label"].copy()}
    batch["source_label"][::2, 6:] = IGNORE  # parts with few valid pixels beside parts with many
    options = dict(betas=(0.1,), ema_decay=0.9, self_training_weight=1.0, self_training_threshold=0.3) if kind == "fda" else {}
    make = fda.make if kind == "fda" else source_only.make
    results = [run(make(model=Plain(), optimizer=optimizer(), accumulate=n, **options), batch, 3, meshes.make_mesh(1)) for n in (1, 4)]
    (whole, one), (parts, four) = results
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert one[-1]["loss/ce"] == pytest.approx(four[-1]["loss/ce"], rel=3e-6)


def test_adabn_averages_the_batches_own_statistics(batch):
    state = fresh(made("adabn"), batch)
    kernel, bias = jax.device_get((state.params["conv1"]["kernel"], state.params["conv1"]["bias"]))
    images = [batch["target_image"], batch["source_image"]]
    for image in images:
        state, _ = run(made("adabn"), {**batch, "target_image": image}, 1, meshes.make_mesh(1), state=state)
    padded = [np.pad(image / 255.0, ((0, 0), (1, 1), (1, 1), (0, 0))) for image in images]
    patches = [np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2] for x in padded]
    convolved = [np.einsum("bhwcij,ijco->bhwo", x, kernel) + bias for x in patches]
    mean = np.mean([x.mean((0, 1, 2)) for x in convolved], axis=0)
    var = np.mean([x.var((0, 1, 2), ddof=1) for x in convolved], axis=0)
    np.testing.assert_allclose(state.batch_stats["norm1"]["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(state.batch_stats["norm1"]["var"], var, rtol=1e-3)


def test_what_a_method_cannot_work_with_is_told(batch):
    source = {name: value for name, value in batch.items() if name.startswith("source")}
    for name in ("fda", "adabn"):
        method = made(name)
        state = jax.eval_shape(method.init, jax.random.key(0), batch)
        with pytest.raises(ConfigError, match="source_image, source_label alone: set data.target"):
            jax.eval_shape(method.step, state, (), source)
    averaged = source_only.make(model=Tiny(), optimizer=optimizer(), ema_decay=1.5)
    with pytest.raises(ConfigError, match="ema_decay=1.5"):
        jax.eval_shape(averaged.step, jax.eval_shape(averaged.init, jax.random.key(0), batch), (), batch)
    plain = adabn.make(model=DeepLabV2(5, backbone="vgg16", vgg_widths=(4,) * 5, vgg_fc=4))
    with pytest.raises(ConfigError, match="DeepLabV2 has none"):
        jax.eval_shape(plain.init, jax.random.key(0), batch)


@pytest.mark.parametrize(
    "options",
    [
        {"statistics": "source"},
        {"statistics": "target", "entropy_weight": 0.0},
        {"self_training_weight": 1.0},
        {"stylized_share": -0.5},
        {"self_training_threshold": 2.0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match="method"):
        fda.make(model=Tiny(), optimizer=optimizer(), **options)
