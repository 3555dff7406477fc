"""Words of a network's classes from a tiny CLIP's text tower: what a stage starts with, and every refusal in one line."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError, SegjaxError
from segjax.nets.mask2former import mask2former
from segjax.verbs import networks, variables, words, zero_shot
from segjax.verbs.embedder import Embedder

NET: dict = dict(num_classes=2, backbone="clip_convnext", backbone_depths=(1, 1, 1, 1), backbone_dims=(4, 4, 8, 8), backbone_head_width=8)
NET |= dict(channels=32, mask_channels=8, decoder_channels=8, heads=2, encoder_layers=1, encoder_hidden=8, decoder_layers=0)
NET |= dict(decoder_hidden=8, queries=3, frozen=True, normalization="clip", backbone_embed_dim=20)


def numbers(stage):
    """Variables of a stage's network."""
    rng = np.random.default_rng(stage.seed)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), variables.shapes(stage.model))


@pytest.fixture
def stage(goldens, tmp_path, monkeypatch):
    """A stage over a network of two classes; its words may be given in the file `classes`."""
    monkeypatch.setattr(variables, "drawn", numbers)
    (tmp_path / "classes").write_text("road\nsky, clouds")
    given = {"clip": str(goldens / "openclip_convnext"), "tokenizer": str(goldens / "clip_hf_quickgelu")}
    given |= {"classes": str(tmp_path / "classes"), "templates": "vild"}

    def made(told=None, **settings):
        spec = None if told is None else {**given, **told}
        counts = zero_shot.of_model(spec, "words").counts if spec else (1, 2)
        settings = {"class_head": "text", "ensemble": True, "embed_dim": 20, "synonyms": counts, **settings}
        model = mask2former(**NET, **settings)
        return types.SimpleNamespace(name="warm", seed=1, model=model, spec={"model": {"words": spec}})

    return made


def test_a_stage_starts_with_its_words_and_they_tell_the_classes(stage, goldens, tmp_path):
    one = stage({})
    found = words.put(one, None, anew=True)
    network = networks.load(goldens / "openclip_convnext")
    encode = Embedder(network, batch_size=128, tokenizer=goldens / "clip_hf_quickgelu", name="clip").texts
    each = [encode([prompt.replace("{}", word) for prompt in zero_shot.templates("vild")]) for word in ("road", "sky", "clouds")]
    mean = np.stack([vectors.mean(0) / np.linalg.norm(vectors.mean(0)) for vectors in each])
    np.testing.assert_allclose(found["batch_stats"]["words"], mean, atol=1e-6)
    assert found["batch_stats"]["clip_logit_scale"] == network.variables["params"]["logit_scale"]
    jax.tree.map(np.testing.assert_array_equal, found["params"], numbers(one)["params"])
    assert words.put(one, found, anew=False) is found  # an earlier stage's

    (tmp_path / "classes").write_text("wall\nsky, clouds")
    other = words.put(stage({}), found, anew=True)
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.normal(size=(1, size, size, width)), jnp.float32) for size, width in ((8, 4), (4, 4), (2, 8), (1, 8))]
    predict = jax.jit(lambda variables: one.model.apply(variables, maps, method="predictions")["class_logits"])
    first, second = predict(found), predict(other)
    assert (first[..., 0] != second[..., 0]).all() and (first[..., 1:] == second[..., 1:]).all()
    kept = words.inputs(stage({}))
    assert kept["synonyms"] == (("wall",), ("sky", "clouds")) and len(kept["templates"]) == 14
    assert list(kept["clip"]) == ["open_clip_model.safetensors"]
    assert set(kept["tokenizer"]) == {"vocab.json", "merges.txt"} and words.inputs(stage()) == {}


def test_mistakes_are_one_line(stage, goldens, tmp_path):
    linear = dict(class_head="linear", ensemble=False)
    for settings, told, message in (
        (linear, {}, r"warm.model.words: the network reads none: set class_head='text'"),
        ({}, None, r"warm.model.words: the network reads words and has none: name clip, tokenizer"),
        (dict(embed_dim=24, ensemble=False), {}, r"openclip_convnext: has vectors of 20 numbers, and .*model.embed_dim=24"),
        ({}, {"clip": str(goldens / "enet/ENet")}, "ENet: is a ENet, expected a CLIP with both towers"),
        ({}, {"clip": str(tmp_path / "none.pt")}, "none.pt: no such file"),
        ({}, {"tokenizer": ""}, "openclip_convnext: no tokenizer there"),
        ({}, {"templates": "vldi"}, "warm.model.words.templates=vldi: no such file, and not vild"),
    ):
        with pytest.raises(SegjaxError, match=message) as caught:
            words.put(stage(told, **settings), None, anew=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="words=.*: expected texts for clip, tokenizer, classes, templates"):
        zero_shot.of_model({"clip": "a"}, "words")
    assert words.put(stage(**linear), None, anew=True) is None
