"""What every network inherits: parameter counts of the papers, shapes, dtype, jit, gradients, any size, scanned blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.nets.deeplab import DeepLabV2
from segjax.nets.enet import ENet
from segjax.nets.mit import MixTransformer
from segjax.nets.resnet import ResNet
from segjax.runtime import mesh as meshes
from segjax.verbs.variables import shapes

COUNTS = [
    (ENet(19), 351_660),
    (ENet(12), 350_652),
    (ENet(20, layout="torch7"), 364_712),
    (DeepLabV2(19), 43_901_068),
    (DeepLabV2(16), 43_679_872),
    (DeepLabV2(19, multi_level=True), 44_601_560),
    (DeepLabV2(19, backbone="vgg16"), 29_573_004),
]


@pytest.mark.parametrize("model, count", COUNTS, ids=lambda x: type(x).__name__ if not isinstance(x, int) else str(x))
def test_parameter_counts(model, count):
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes(model)["params"])) == count


@pytest.mark.parametrize("backbone, size", [("resnet101", (65, 129)), ("vgg16", (64, 128))])
def test_deeplab_keeps_the_sizes_of_caffe(backbone, size):
    model, image = DeepLabV2(19, backbone=backbone), jax.ShapeDtypeStruct((1, 512, 1024, 3), jnp.float32)
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x), shapes(model), image)
    assert outputs["logits"].shape == (1, *size, 19)


TINY = [
    ENet(5, dilations=(2, 0)),  # one of both kinds
    DeepLabV2(5, backbone="resnet50", width=4, multi_level=True, branches=2),
    DeepLabV2(5, backbone="vgg16", vgg_widths=(4, 4, 8, 8, 8), vgg_fc=8),
]
NAMES = ["enet", "resnet", "vgg"]


def random_variables(model):
    """Variables of the right shapes without compiling `init`: small kernels, unit scales and variances."""
    rng = np.random.default_rng(0)

    def leaf(path, x):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(x.shape, np.float32)
        return rng.normal(0, 0.1, x.shape).astype(np.float32) if name in ("kernel", "slope") else np.zeros(x.shape, np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes(model))


IMAGE = np.random.default_rng(1).uniform(size=(2, 37, 50, 3)).astype(np.float32)


def training_loss(model, params, batch_stats):
    state, rngs = {"params": params, "batch_stats": batch_stats}, {"dropout": jax.random.key(2)}
    outputs, changed = model.apply(state, IMAGE, train=True, mutable=["batch_stats"], rngs=rngs)
    return jnp.square(outputs["logits"]).mean(), (outputs["logits"], changed.get("batch_stats", {}))


@pytest.mark.parametrize("model", [ENet(5, layout="torch7", dilations=(2, 0)), *TINY[1:]], ids=NAMES)
def test_bfloat16_keeps_parameters_statistics_and_logits_float32(model):
    half = functools.partial(training_loss, model.clone(dtype=jnp.bfloat16))
    jaxpr, found = jax.make_jaxpr(half, return_shape=True)(shapes(model)["params"], shapes(model)["batch_stats"])
    assert {x.dtype for x in jax.tree.leaves((shapes(model), found))} == {jnp.dtype("float32")}
    assert "bf16" in str(jaxpr)


@pytest.mark.parametrize("model", TINY, ids=NAMES)
def test_trains_at_an_odd_size(model):
    variables = random_variables(model)
    step = jax.jit(jax.value_and_grad(functools.partial(training_loss, model), has_aux=True))
    (value, (logits, batch_stats)), gradients = jax.device_get(step(variables["params"], variables["batch_stats"]))
    assert logits.dtype == np.float32 and logits.shape[-1] == 5 and np.isfinite(value)
    if isinstance(model, ENet):
        assert logits.shape[1:3] == (37, 50)
    used = [np.any(leaf != 0) for leaf in jax.tree.leaves({k: v for k, v in gradients.items() if "aux" not in k})]
    assert np.mean(used) > 0.95, "parameters without a gradient"
    moved = jax.tree.map(lambda a, b: np.any(a != b), batch_stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ENet(5, layout="torch"), "model.layout='torch': expected pytorch or torch7"),
        (DeepLabV2(5, backbone="resnet18"), "model.backbone='resnet18'"),
        (DeepLabV2(5, normalization="zero"), "model.normalization='zero'"),
        (DeepLabV2(5, width=4, remat="some"), "remat='some': expected one of none, wide, all"),
        (DeepLabV2(5, width=4, branches=5), "model.branches=5: expected 1 to 4"),
    ],
)
def test_an_unknown_form_is_told(model, words):
    with pytest.raises(ConfigError, match=words):
        shapes(model)


def test_scanned_stages_hold_stacked_parameters():
    assert shapes(ENet(19))["params"]["stage2_3"]["block1"]["ext_conv2"]["conv"]["kernel"].shape == (2, 3, 3, 32, 32)
    assert shapes(DeepLabV2(19))["params"]["backbone"]["layer3_rest"]["conv2"]["kernel"].shape == (22, 3, 3, 256, 256)


NETS = {
    "resnet": ResNet((3,), 4, strides=(1,), dilations=(1,)),
    "mit": MixTransformer(dims=(8,), depths=(3,), num_heads=(1,), mlp_ratios=(2,), sr_ratios=(2,), patch_sizes=(7,), strides=(4,)),
}


@pytest.mark.parametrize("name", NETS)
def test_rematerialised_blocks_give_the_same_gradient_from_less_memory(name):
    """The fewer activations are kept, the less memory; the gradient stays."""
    net, image = NETS[name], np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)
    variables = random_variables(net)

    def compiled(net, params, image):
        def loss(params, image):
            apply = functools.partial(net.apply, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
            maps, _ = apply({**variables, "params": params}, image, train=True)
            return sum(jnp.sum(jnp.sin(x)) for x in maps)

        return jax.jit(jax.grad(loss)).lower(params, image).compile()

    forms = [compiled(net.clone(remat=remat), variables["params"], image) for remat in ("none", "wide", "all")]
    expected, *others = (form(variables["params"], image) for form in forms)
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * float(np.abs(b).max()) + 1e-5)
    for other in others:
        jax.tree.map(same, other, expected)
    none, wide, all_ = (form.memory_analysis().temp_size_in_bytes for form in forms)
    assert all_ < wide < none
    if name == "mit":  # whose parts no other test spreads over devices
        mesh = meshes.make_mesh(1, 2)
        params = jax.device_put(variables["params"], meshes.shard_rules(variables["params"], mesh, min_size=64))
        spread = params, jax.device_put(image, meshes.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            jax.tree.map(same, compiled(net, *spread)(*spread), expected)
