"""The strict walk on hand-made trees: stacking, transforms, errors with both lists, loading and class cutting."""

import numpy as np
import pytest

from segjax.errors import WeightsError
from segjax.weights import safetensors_io, walk
from segjax.weights.engine import CONV, CONV_TRANSPOSE, DENSE, Layout, Rule

LAYOUT = Layout(
    "toy",
    (
        Rule(r"params/(stem|head)/kernel", "{0}.weight", CONV),
        Rule(r"params/blocks/(fc\d)/kernel", "layer.{i}.{0}.weight", DENSE, first=1),
        Rule(r"params/pair/scale", ("a.weight", "z.weight")),
        Rule(r"params/up/kernel", "up.weight", CONV_TRANSPOSE),
    ),
    ignore=(r".*\.num_batches_tracked",),
)


def _source():
    draw = np.random.default_rng(0).standard_normal
    arrays = {"stem.weight": draw((4, 3, 5, 1)), "head.weight": draw((2, 4, 1, 1)), "up.weight": draw((4, 2, 3, 3))}
    arrays |= {f"layer.{i}.fc1.weight": draw((6, 4)) for i in (1, 2, 3)} | {"a.weight": draw(7), "z.weight": draw(7)}
    return {key: value.astype(np.float32) for key, value in arrays.items()}


def _like(**changes):
    shapes = {
        "stem/kernel": (5, 1, 3, 4),
        "head/kernel": (1, 1, 4, 2),
        "blocks/fc1/kernel": (3, 4, 6),
        "pair/scale": (2, 7),
        "up/kernel": (3, 3, 4, 2),
    }
    return {f"params/{path}": np.empty(shape, np.float32) for path, shape in (shapes | changes).items() if shape}


def test_every_array_lands_transposed_and_stacked():
    source = _source()
    flat = walk.to_segjax(source | {"bn.num_batches_tracked": np.array(3)}, LAYOUT, _like())
    np.testing.assert_array_equal(flat["params/stem/kernel"][3, 0, 1, 2], source["stem.weight"][2, 1, 3, 0])
    np.testing.assert_array_equal(flat["params/blocks/fc1/kernel"][1], source["layer.2.fc1.weight"].T)
    np.testing.assert_array_equal(flat["params/pair/scale"][1], source["z.weight"])
    np.testing.assert_array_equal(flat["params/up/kernel"][2, 1], source["up.weight"][:, :, 2, 1])
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in flat.values())
    back = walk.to_source(flat, LAYOUT)
    assert set(back) == set(source) and all(np.array_equal(back[key], source[key]) for key in source)


def test_half_precision_becomes_float32():
    source = {key: value.astype(np.float16) for key, value in _source().items()}
    assert walk.to_segjax(source, LAYOUT, _like())["params/pair/scale"].dtype == np.float32


@pytest.mark.parametrize(
    ("source", "like", "message"),
    [
        ({"extra.weight": np.zeros(2)}, {}, "unused source keys 1: extra.weight"),
        ({"layer.4.fc1.weight": np.zeros((6, 4))}, {}, r"unused source keys 1: layer\.4"),
        ({}, {"new/kernel": (2,)}, r"without a source 1: params/new/kernel \(no rule\)"),
        ({}, {"blocks/fc1/kernel": (5, 4, 6)}, r"without a source 1: params/blocks/fc1/kernel \(layer\.4\.fc1\.weight, layer\.5"),
        ({}, {"blocks/fc1/kernel": (2, 4, 6)}, r"unused source keys 1: layer\.3"),
        ({}, {"pair/scale": (3, 7)}, r"wrong shapes 1: a\.weight"),
        ({}, {"head/kernel": (1, 1, 4, 3)}, r"wrong shapes 1: head\.weight \(2, 4, 1, 1\) does not fit params/head/kernel \(1, 1, 4, 3\)"),
        ({"stem.weight": np.zeros(3)}, {}, r"wrong shapes 1: stem\.weight \(3,\)"),
        ({}, {"head/kernel": None}, r"unused source keys 1: head\.weight"),
    ],
)
def test_whatever_is_left_over_is_listed(source, like, message):
    with pytest.raises(WeightsError, match=f"file.*layout toy.*{message}"):
        walk.to_segjax(_source() | source, LAYOUT, _like(**like), name="file")


def test_long_lists_show_ten_and_the_count():
    with pytest.raises(WeightsError) as caught:
        walk.to_segjax(_source() | {f"x{n:02}": np.zeros(1) for n in range(30)}, LAYOUT, _like())
    assert "unused source keys 30: x00" in str(caught.value) and "x09, ..." in str(caught.value) and "x10" not in str(caught.value)


def test_the_way_back_refuses_a_path_without_a_rule():
    with pytest.raises(WeightsError, match="without a source 1: params/new/kernel"):
        walk.to_source({"params/new/kernel": np.zeros(2)}, LAYOUT)


def test_joined_shared_and_copied_sources_come_together_and_apart():
    rules = (
        Rule("params/joined/kernel", ("{i}.k.weight", "{i}.v.weight"), DENSE, join=-1),
        Rule("params/one/kernel", "in_proj_weight", DENSE, share=(0, 1, 3)),
        Rule("params/two/kernel", "in_proj_weight", DENSE, share=(1, 3, 3)),
        Rule("params/tied/scale", "a.weight", copies=("b.weight",)),
    )
    layout, draw = Layout("toy", rules), np.random.default_rng(0).standard_normal
    source = {f"{i}.{name}.weight": draw((4, 2)) for i in (0, 1) for name in "kv"} | {"in_proj_weight": draw((6, 5))}
    source = {key: value.astype(np.float32) for key, value in (source | {"a.weight": draw(3)}).items()}
    shapes = {"joined/kernel": (2, 2, 8), "one/kernel": (5, 2), "two/kernel": (5, 4), "tied/scale": (3,)}
    like = {f"params/{path}": np.empty(shape, np.float32) for path, shape in shapes.items()}
    flat = walk.to_segjax(source, layout, like)
    np.testing.assert_array_equal(flat["params/joined/kernel"][1], np.hstack([source["1.k.weight"].T, source["1.v.weight"].T]))
    np.testing.assert_array_equal(flat["params/one/kernel"], source["in_proj_weight"][:2].T)
    np.testing.assert_array_equal(flat["params/two/kernel"], source["in_proj_weight"][2:].T)
    back = walk.to_source(flat, layout)
    assert set(back) == {*source, "b.weight"} and all(back[key].tobytes() == source[key].tobytes() for key in source)
    np.testing.assert_array_equal(back["b.weight"], source["a.weight"])

    assert walk.to_segjax(back, layout, like).keys() == flat.keys()
    with pytest.raises(WeightsError, match=r"wrong shapes 1: b\.weight differs from a\.weight, of which it should be a copy"):
        walk.to_segjax(source | {"b.weight": source["a.weight"] + 1}, layout, like)
    with pytest.raises(WeightsError, match=r"wrong shapes 1: in_proj_weight \(7, 5\) does not fit params/two"):
        walk.to_segjax(source | {"in_proj_weight": np.zeros((7, 5))}, layout, like)
    with pytest.raises(WeightsError, match=r"in_proj_weight, of which only the parts \[\(1, 3\)\] of 3 are there"):
        walk.to_source({path: value for path, value in flat.items() if "one" not in path}, layout)


def _tree():
    return {
        "params": {"body": {"kernel": np.ones((2, 3), np.float32)}, "last": {"bias": np.arange(5, dtype=np.float32)}},
        "batch_stats": {},
    }


def test_load_variables_checks_every_leaf(tmp_path):
    path, like = tmp_path / "w.safetensors", _tree()
    safetensors_io.write(path, safetensors_io.flatten(like))
    loaded = walk.load_variables(path, like)
    assert loaded["batch_stats"] == {} and np.array_equal(loaded["params"]["last"]["bias"], np.arange(5))
    more = {**like, "params": {**like["params"], "new": {"bias": np.zeros(2)}}}
    with pytest.raises(WeightsError, match=r"w\.safetensors.*without a source 1: params/new/bias"):
        walk.load_variables(path, more)
    with pytest.raises(WeightsError, match="unused source keys 1: params/body/kernel"):
        walk.load_variables(path, {"params": {"last": like["params"]["last"]}})
    fewer = {**like, "params": {**like["params"], "last": {"bias": np.full(3, 7.0, np.float32)}}}
    with pytest.raises(WeightsError, match=r"wrong shapes 1: params/last/bias \(5,\) does not fit \(3,\)"):
        walk.load_variables(path, fewer)
    kept = walk.load_variables(path, fewer, skip=["params/last/"])
    np.testing.assert_array_equal(kept["params"]["last"]["bias"], [7, 7, 7])
    np.testing.assert_array_equal(kept["params"]["body"]["kernel"], np.ones((2, 3)))


def test_adapt_classifier_cuts_and_reorders():
    cut = walk.adapt_classifier(_tree(), [4, 1, 1], classifier="params/last/")
    np.testing.assert_array_equal(cut["params"]["last"]["bias"], [4, 1, 1])
    np.testing.assert_array_equal(cut["params"]["body"]["kernel"], np.ones((2, 3)))
    rows = walk.adapt_classifier(_tree(), [1], classifier="kernel", axis={"kernel": 0})
    assert rows["params"]["body"]["kernel"].shape == (1, 3) and rows["batch_stats"] == {}
    for index in ([5], [-1], []):
        with pytest.raises(WeightsError, match="within its 5 classes"):
            walk.adapt_classifier(_tree(), index, classifier="params/last/")
    with pytest.raises(WeightsError, match="matches no parameter"):
        walk.adapt_classifier(_tree(), [0], classifier="params/absent")


def test_a_scan_within_a_scan_and_numbers_of_its_own():
    """Two periods of two plain blocks and one special one, from block 1: 1 2 [3] 4 5 [6]."""
    plain = lambda i, groups: int(groups[0]) + i // 2 * 3 + i % 2
    special = lambda i, groups: int(groups[0]) + 3 * i + 2
    rules = (
        Rule(r"params/from(\d)/plain/scale", "b.{i}.w", number=plain, levels=2),
        Rule(r"params/from(\d)/special/scale", "b.{i}.w", number=special, copies=("twin.{i}",)),
    )
    source = {f"b.{i}.w": np.full(3, i, np.float32) for i in range(1, 7)}
    like = {"params/from1/plain/scale": np.empty((2, 2, 3)), "params/from1/special/scale": np.empty((2, 3))}
    flat = walk.to_segjax(source, Layout("toy", rules), like)
    assert flat["params/from1/plain/scale"][..., 0].tolist() == [[1, 2], [4, 5]]
    assert flat["params/from1/special/scale"][:, 0].tolist() == [3, 6]
    back = walk.to_source(flat, Layout("toy", rules))
    assert set(back) == {*source, "twin.3", "twin.6"} and all(np.array_equal(back[key], source[key]) for key in source)
    with pytest.raises(WeightsError, match=r"b\.1\.w \(3,\) does not fit"):
        walk.to_segjax(source, Layout("toy", rules), like | {"params/from1/plain/scale": np.empty((2, 2, 4))})


def test_a_scan_within_a_scan_may_count_both_axes():
    rule = Rule(r"params/stage(\d)/blocks/scale", "stage{0}.{i}.block.{j}.w", levels=2, first=1)
    source = {f"stage4.{i}.block.{j}.w": np.full(5, 10 * i + j, np.float32) for i in (1, 2) for j in (0, 1, 2)}
    flat = walk.to_segjax(source, Layout("toy", (rule,)), {"params/stage4/blocks/scale": np.empty((2, 3, 5))})
    assert flat["params/stage4/blocks/scale"][..., 0].tolist() == [[10, 11, 12], [20, 21, 22]]
    back = walk.to_source(flat, Layout("toy", (rule,)))
    assert back.keys() == source.keys() and all(np.array_equal(back[key], source[key]) for key in source)
