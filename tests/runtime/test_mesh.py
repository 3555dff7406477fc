import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from segjax.errors import ConfigError
from segjax.nets.resnet import ResNet
from segjax.runtime import hlo, hlo_text
from segjax.runtime import mesh as meshes


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_mesh_sizes():
    mesh = meshes.make_mesh()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1} and mesh.axis_types == (AxisType.Auto,) * 2
    assert dict(meshes.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert meshes.make_mesh(1).size == 1
    for bad in ({"fsdp": 3}, {"data": 16}, {"data": 0}, {"data": 4, "fsdp": 4}):
        with pytest.raises(ConfigError, match="mesh"):
            meshes.make_mesh(**bad)


def test_rules_split_the_largest_dimension_that_divides():
    mesh = meshes.make_mesh(fsdp=4)
    tree = {"params": {"kernel": spec(3, 3, 128, 256), "square": spec(256, 256), "odd": spec(129, 131), "small": spec(64)}}
    rules = meshes.shard_rules(tree, mesh)["params"]
    assert rules["kernel"].spec == PartitionSpec(None, None, None, "fsdp")
    assert rules["square"].spec == PartitionSpec(None, "fsdp")
    assert rules["odd"].spec == rules["small"].spec == PartitionSpec()
    assert meshes.shard_rules(tree, meshes.make_mesh())["params"]["kernel"].spec == PartitionSpec()


def test_overrides():
    mesh = meshes.make_mesh(fsdp=4)
    tree = {
        "params": {"kernel": spec(128, 256)},
        "opt_state": ({"kernel": spec(128, 256)},),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
    }
    rules = meshes.shard_rules(tree, mesh, (("kernel$", PartitionSpec("fsdp")),))
    assert rules["params"]["kernel"].spec == rules["opt_state"][0]["kernel"].spec == PartitionSpec("fsdp")
    assert rules["key"].spec == PartitionSpec()
    for pattern, bad, message in (
        ("nothing", PartitionSpec(), "matches no array"),
        ("kernel", PartitionSpec("model"), "not 'model'"),
        ("kernel", PartitionSpec(None, None, "fsdp"), "more entries"),
    ):
        with pytest.raises(ConfigError, match=message):
            meshes.shard_rules(tree, mesh, ((pattern, bad),))
    with pytest.raises(ConfigError, match="6 does not divide by 4"):
        meshes.shard_rules({"w": spec(6)}, mesh, (("w", PartitionSpec("fsdp")),))


def test_put_batch_splits_rows_and_keeps_order():
    mesh = meshes.make_mesh(4, 2)
    batch = {"source_image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)}
    placed = meshes.put_batch(batch, mesh)["source_image"]
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)} and placed.dtype == np.uint8
    np.testing.assert_array_equal(placed, batch["source_image"])
    assert meshes.batch_spec(batch, mesh)["source_image"].sharding == placed.sharding


def test_batch_that_does_not_divide_names_the_way_out():
    with pytest.raises(ConfigError, match=r"12 rows \(target_image\).*8 devices.*batch_size=8"):
        meshes.put_batch({"target_image": np.zeros((12, 2), np.uint8)}, meshes.make_mesh())


def test_kernels_over_fsdp_are_gathered_and_activations_are_not():
    """Without a word at each layer the compiler splits the channels of a scanned network over `fsdp`, and gathers those at every use."""
    net, mesh = ResNet((3,), 16, strides=(1,), dilations=(1,)), meshes.make_mesh(2, 4)
    image = jax.ShapeDtypeStruct((16, 16, 32, 3), jnp.float32, sharding=meshes.batch_sharding(mesh))
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    variables = meshes.with_shardings(shapes, meshes.shard_rules(shapes, mesh, min_size=0))

    def step(variables, image):
        def loss(params):
            outputs, after = net.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return jnp.mean(outputs[-1] ** 2), after

        (_, after), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {"params": jax.tree.map(lambda p, g: p - g, variables["params"], gradient), **after}

    with jax.sharding.set_mesh(mesh):
        text = jax.jit(step, out_shardings=jax.tree.map(lambda x: x.sharding, variables)).lower(variables, image).compile().as_text()
    moved = hlo.count(hlo_text.parse(text or "")).moved
    assert {kind for kind, _ in moved} == {"all-gather", "all-reduce"}
    assert 0 < moved["all-gather", 4] <= 2 * sum(4 * x.size for x in jax.tree.leaves(shapes))  # forward and backward
