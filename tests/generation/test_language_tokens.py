"""The tokenizer that lies with a language model: ids as its makers give them, its chat template, what ends an answer."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from segjax.errors import WeightsError
from segjax.generation.language_tokens import LanguageTokenizer

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' and 'no system' in message.content %}{{ raise_exception('one role') }}"
    "{% endif %}{{ bos_token }}[{{ message.role }}]{{ message.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def folder(goldens, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(goldens / "llama_hf" / name, tmp_path / name)
    return tmp_path


def _change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ids_of_the_golden_and_back(goldens):
    tokenizer = LanguageTokenizer(goldens / "llama_hf")
    arrays = np.load(goldens / "llama_hf" / "golden.npz")
    prompts = json.loads((goldens / "llama_hf" / "prompts.json").read_text())
    for n, prompt in enumerate(prompts):
        assert tokenizer.encode(prompt) == arrays[f"in_ids_{n}"][0].tolist()
        assert tokenizer.decode([*tokenizer.encode(prompt)[1:], 2]) == prompt
    assert tokenizer.vocab_size == 420 and tokenizer.stop == (2,) and not tokenizer.chat
    assert tokenizer.encode("a car", "Be brief.") == tokenizer.encode("Be brief.\n\na car")


def test_chat_template(folder):
    _change(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    tokenizer = LanguageTokenizer(folder)
    assert tokenizer.chat
    ids = tokenizer.encode("a car", "Be brief.")
    assert ids.count(1) == 2, "the template writes the begin token, the tokenizer must not write another"
    assert tokenizer.decode(ids).replace(" ", "") == "[system]Bebrief.[user]acar[assistant]"
    with pytest.raises(WeightsError, match=r"chat template does not take the prompt \(one role\): try without --system"):
        tokenizer.encode("a car", "no system here")


def test_chat_template_without_its_library(folder, monkeypatch):
    _change(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    tokenizer = LanguageTokenizer(folder)

    def absent(*_, **__):
        raise ImportError("no jinja2")

    monkeypatch.setattr(tokenizer._tokenizer, "apply_chat_template", absent)
    with pytest.raises(WeightsError, match=r"needs jinja2 \(no jinja2\): pip install jinja2"):
        tokenizer.encode("a car")


def test_stop_tokens_come_from_every_file(folder):
    _change(folder / "config.json", eos_token_id=[5, 6])
    assert LanguageTokenizer(folder).stop == (2, 5, 6)
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert LanguageTokenizer(folder).stop == (2, 9)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(WeightsError, match="generation_config.json: no JSON object"):
        LanguageTokenizer(folder)


def test_missing_and_damaged_files(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"its tokenizer cannot be read .*: fetch it again"):
        LanguageTokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer there \(tokenizer.json or tokenizer.model\)"):
        LanguageTokenizer(folder / "config.json")


def test_sentencepiece_file_alone(goldens, folder):
    shutil.copy(goldens / "llama_hf" / "tokenizer.model", folder)
    (folder / "tokenizer.json").unlink()
    if importlib.util.find_spec("sentencepiece") is None:
        with pytest.raises(WeightsError, match="tokenizer.model alone needs `pip install sentencepiece`"):
            LanguageTokenizer(folder)
    else:
        assert LanguageTokenizer(folder).encode("Describe a street") == LanguageTokenizer(goldens / "llama_hf").encode("Describe a street")
