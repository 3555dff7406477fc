"""Token ids of CLIP against stored ones, from every form of tokenizer files; missing and damaged files."""

import json
import shutil

import numpy as np
import pytest

from segjax.errors import WeightsError
from segjax.generation.tokens import Tokenizer

FORMS = [
    ("vocab.json", "merges.txt"),
    ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
    ("tokenizer.json",),
]


@pytest.fixture(scope="module")
def clip(goldens):
    return goldens / "clip_hf_quickgelu"


@pytest.mark.parametrize("form", FORMS, ids=["plain", "published", "tokenizers"])
@pytest.mark.parametrize("inside", ["", "tokenizer"])
def test_ids_are_the_stored_ones(clip, tmp_path, form, inside):
    place = tmp_path / inside
    place.mkdir(exist_ok=True)
    if form == FORMS[2]:
        Tokenizer(clip)._tokenizer.save_pretrained(tmp_path / "saved")
        shutil.copy(tmp_path / "saved" / "tokenizer.json", place)
    else:
        for name in form:
            shutil.copy(clip / name, place)
    prompts, stored = json.loads((clip / "prompts.json").read_text()), np.load(clip / "golden.npz")
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.context, tokenizer.vocab_size) == (77, 664)
    np.testing.assert_array_equal(tokenizer(prompts), stored["in_ids"])
    np.testing.assert_array_equal(Tokenizer(tmp_path, pad=0)(prompts), stored["in_ids_openai_pad0"])
    assert tokenizer(prompts).dtype == np.int32 and tokenizer([]).shape == (0, 77)


def test_a_shorter_context_keeps_the_end(clip):
    tokenizer = Tokenizer(clip / "model.safetensors", context=5)
    ids = tokenizer(["a photo of a road", ""])
    assert ids.shape == (2, 5) and ids[0, 0] == 662 and ids[0, 4] == 663 and ids[1].tolist() == [662, 663, 663, 663, 663]


def test_missing_and_damaged_files_are_named(clip, tmp_path):
    with pytest.raises(WeightsError, match=r"no tokenizer there.*vocab\.json with merges\.txt.*openai/clip"):
        Tokenizer(tmp_path)
    shutil.copy(clip / "vocab.json", tmp_path)
    with pytest.raises(WeightsError, match="no tokenizer there"):
        Tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be read"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="tokenizer"):
        Tokenizer(tmp_path)
