"""`segjax prompts`: what each source leaves, that nothing is asked twice, and the mistakes that people make."""

import json
import os
import pathlib
import signal
import textwrap

import pytest
from language_server import Server, bad, good

from segjax import cli
from segjax.generation import captions, prompts
from segjax.verbs import networks, prompt_sources


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(goldens):
    return goldens / "llama_hf"


def write(output, *flags):
    return cli.main(["prompts", f"--output={output}", *flags])


def contents(output):
    return {name: (output / name).read_bytes() for name in ("prompts.jsonl", "manifest.json")}


def local(model, *more):
    """Flags for the tiny model, whose words are noise: short answers, any length of prompt."""
    own = ["--instruction=A photo of {number} road", "--captions=1", "--max-tokens=8", "--min-words=1", "--unit=2", "--seed=5"]
    return [f"--model={model}", *own, *more]


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("written")
    assert write(output, *local(model, "--count=5", "--devices=1")) == 0
    return output


def test_prompts_of_a_model_here(written, model):
    found = prompts.read(written / "prompts.jsonl")
    assert len({each.text for each in found}) == 5 and {each.category for each in found} == {""}
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["weights_sha256"] == networks.hashes(model) and len(manifest["weights_sha256"]) == 8
    assert manifest["instruction"] == "A photo of {number} road" and manifest["seed"] == 5 and manifest["count"] == 5
    assert manifest["temperature"] == 0.8 and manifest["top_p"] == 0.95 and manifest["platform"] == "cpu"
    assert manifest["requests"] % 2 == 0 and sum(manifest["dropped"].values()) + 5 <= manifest["requests"]


def test_a_second_run_asks_nothing(written, model, monkeypatch, capsys):
    before = contents(written)
    monkeypatch.setattr(networks, "load", lambda *_, **__: pytest.fail("the model was opened"))
    assert write(written, *local(model, "--count=5", "--devices=1")) == 0
    assert "finished before" in capsys.readouterr().out
    for name in (*before, "done.json"):
        (written / name).unlink()
    assert write(written, *local(model, "--count=5", "--devices=1")) == 0
    assert contents(written) == before


def test_eight_devices_and_split_parameters_write_the_same(written, model, tmp_path):
    assert write(tmp_path, *local(model, "--count=5", "--devices=8", "--fsdp=2")) == 0
    assert (tmp_path / "prompts.jsonl").read_bytes() == (written / "prompts.jsonl").read_bytes()


def test_stopped_and_damaged_it_goes_on(written, model, tmp_path, monkeypatch, capsys):
    ask = prompt_sources._Local.ask

    def stopped(self, requests):
        os.kill(os.getpid(), signal.SIGTERM)
        return ask(self, requests)

    with monkeypatch.context() as patch:
        patch.setattr(prompt_sources._Local, "ask", stopped)
        assert write(tmp_path, *local(model, "--count=5", "--devices=1")) == 75
    assert "SIGTERM after 2 of 5 prompts" in capsys.readouterr().err and not (tmp_path / "prompts.jsonl").exists()
    (file,) = tmp_path.glob("answers-*.jsonl")
    kept = file.read_text().splitlines()
    file.write_text(f"{kept[0]}\n{kept[1][:20]}")
    assert write(tmp_path, *local(model, "--count=5", "--devices=1")) == 0
    assert (tmp_path / "prompts.jsonl").read_bytes() == (written / "prompts.jsonl").read_bytes()
    assert file.read_text().splitlines()[:2] == kept


def test_fewer_prompts_are_the_first_ones(written, model, monkeypatch, tmp_path):
    for file in written.glob("answers-*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(networks, "load", lambda *_, **__: pytest.fail("the model was opened"))
    assert write(tmp_path, *local(model, "--count=3", "--devices=1")) == 0
    assert prompts.read(tmp_path / "prompts.jsonl") == prompts.read(written / "prompts.jsonl")[:3]


ANSWERS = [
    good("Sure! Here are 3 captions:\n1. A photo of a road at dusk\n2. A photo of a bus in the rain\n3. A photo of a road, at dusk!"),
    good("A photo of a tram at noon in summer\nA photo of a"),
    good('["A picture of a quiet road in fog", "A photo of a car at night", "A car"]'),
]


def remote(server, *more):
    return [f"--endpoint={server.url}", "--name=llama", "--captions=3", "--key=SEGJAX_TEST_KEY", *more]


def test_prompts_of_an_endpoint(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGJAX_TEST_KEY", "secret")
    server.replies = [*ANSWERS[:2], bad(429, "busy", **{"Retry-After": "0"}), *ANSWERS[2:]]
    flags = remote(server, "--count=5", "--plan=each", "--classes=camvid11", "--send=min_p=0.1", "--seed=7", "--system=Be brief.")
    assert write(tmp_path, *flags) == 0
    assert [tuple(each) for each in prompts.read(tmp_path / "prompts.jsonl")] == [
        ("A photo of a road at dusk", "sky"),
        ("A photo of a bus in the rain", "sky"),
        ("A photo of a tram at noon in summer", "building"),
        ("A photo of a", "building"),
        ("A picture of a quiet road in fog", "pole"),
    ]
    bodies = [body for _, _, body in server.seen]
    assert [body["seed"] for body in bodies] == [7, 8, 9, 9] and bodies[0]["max_tokens"] == 144 and "top_k" not in bodies[0]
    assert bodies[0]["min_p"] == 0.1 and bodies[0]["messages"][1]["content"].endswith("In every caption this time: sky.")
    assert server.seen[0][1]["Authorization"] == "Bearer secret"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["source"] == "endpoint" and manifest["name"] == "llama" and manifest["requests"] == 3
    assert manifest["dropped"] == {"duplicate": 1, "too short": 0, "too long": 0}
    assert not any("secret" in path.read_text() for path in tmp_path.iterdir())


def test_an_endpoint_is_not_asked_again(server, tmp_path, capsys):
    server.replies = list(ANSWERS)
    assert write(tmp_path, *remote(server, "--count=3")) == 0
    server.close()
    assert write(tmp_path, *remote(server, "--count=3")) == 0 and len(server.seen) == 2
    assert write(tmp_path, *remote(server, "--count=2", "--on-change=continue")) == 0
    assert len(prompts.read(tmp_path / "prompts.jsonl")) == 2
    assert write(tmp_path, *remote(server, "--count=3")) == 2
    assert "was made with other settings or inputs (count: 2 -> 3)" in capsys.readouterr().err


def test_answers_of_any_characters_are_kept(server, tmp_path):
    server.replies = [good("A photo\u2028of a \ud83dcar\x85at dusk\nA photo of a caf\u00e9")]
    assert write(tmp_path, *remote(server, "--count=2")) == 0
    assert [each.text for each in prompts.read(tmp_path / "prompts.jsonl")] == ["A photo of a car at dusk", "A photo of a caf\u00e9"]
    assert write(tmp_path, *remote(server, "--count=1", "--on-change=continue")) == 0 and len(server.seen) == 1


def test_an_endpoint_without_enough_to_say(server, tmp_path, capsys):
    server.replies = [ANSWERS[0], good("A photo of a ROAD at dusk")]
    assert write(tmp_path, *remote(server, "--count=4", "--requests=4")) == 3
    told = capsys.readouterr().err
    assert "2 prompts of 4 in 4 requests (dropped: 4 duplicate): raise requests" in told and not (tmp_path / "prompts.jsonl").exists()
    server.replies = [good("A photo of snow on a road\nA photo of a wet car")]
    assert write(tmp_path, *remote(server, "--count=4", "--requests=6")) == 0 and len(server.seen) == 5


def test_templates_by_class(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("a photo of a {}\n\na {} at night\n")
    assert write(tmp_path / "own", f"--templates={file}", "--classes=camvid11", "--count=12") == 0
    found = prompts.read(tmp_path / "own" / "prompts.jsonl")
    assert found[0] == ("a photo of a sky", "sky") and found[10].category == "bicyclist" and found[11] == ("a sky at night", "sky")
    assert len(json.loads((tmp_path / "own" / "manifest.json").read_text())["sha256"]) == 64
    assert write(tmp_path / "street", "--templates=street") == 0
    found = prompts.read(tmp_path / "street" / "prompts.jsonl")
    assert len(found) == 18 * 19 and {each.category for each in found[:19]} == {each.category for each in found}
    file.write_text("a {} in the rain\n")
    assert write(tmp_path / "own", f"--templates={file}", "--classes=camvid11", "--count=11") == 2


def test_a_file_is_cleaned(tmp_path, capsys):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": "1. 'A  car'", "class": "car"}, {"prompt": "a CAR."}, {"prompt": "..."}, {"prompt": "rain " * 41}, {"prompt": "sks"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write(tmp_path / "out", f"--file={file}") == 0
    assert (tmp_path / "out" / "prompts.jsonl").read_text() == '{"prompt": "A car", "class": "car"}\n{"prompt": "sks"}\n'
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["dropped"] == {"duplicate": 1, "too short": 0, "too long": 1}
    assert write(tmp_path / "more", f"--file={file}", "--count=3") == 3
    assert "2 prompts, expected 3 (dropped: 1 duplicate, 1 too long)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no source: give exactly one of --model, --endpoint, --templates, --file"),
        (["--model=a", "--file=b"], "--model and --file: give exactly one"),
        (["--endpoint=http://h/v1"], "--endpoint: name its model with --name"),
        (["--templates=street", "--count=0"], "--count=0: expected a whole number, 1 or more"),
        (["--model=a", "--temperature=-1"], "temperature=-1.0"),
        (["--model=a", "--top-p=nan"], "--top-p=nan: expected a number"),
        (["--model=a", "--plan=each", "--classes=none/at/all"], "--classes=none/at/all: no such file"),
        (["--model=a", "--instruction=about {class}"], "the instruction asks for {class}"),
        (["--model=a", "--instruction=@nowhere"], "--instruction=@nowhere: cannot be read"),
        (["--templates=street", "--min-words=9", "--max-words=8"], "--min-words=9 is more than --max-words=8"),
    ],
)
def test_flags_that_make_no_sense(flags, message, tmp_path, capsys):
    assert write(tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_models_that_are_none(model, goldens, tmp_path, capsys):
    assert write(tmp_path / "a", *local(tmp_path / "nowhere")) == 4
    assert write(tmp_path / "b", *local(goldens / "clip_hf_gelu")) == 4
    assert "is a CLIP, expected a causal language model" in capsys.readouterr().err
    assert write(tmp_path / "c", *local(model, "--max-tokens=600")) == 2
    assert "600 new ones exceed the model's context of 512" in capsys.readouterr().err
    assert write(tmp_path / "d", *local(model, f"--tokenizer={goldens / 'clip_hf_gelu'}")) == 4


CONFIG = """
    from ml_collections import ConfigDict


    def get_config():
        stage = {"verb": "prompts", "model": MODEL, "instruction": "A photo of {number} road", "captions": 1, "max_tokens": 8}
        stage |= {"min_words": 1, "unit": 2, "count": 5, "mesh": {"data": 2, "fsdp": 1}}
        again = {"verb": "prompts", "file": "{stage:prompts}/prompts.jsonl", "count": 3}
        return ConfigDict({"name": "texts", "seed": 5, "order": ("prompts", "again"), "stages": {"prompts": stage, "again": again}})
"""


def test_a_stage_of_a_run(written, model, tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.py"
    config.write_text(textwrap.dedent(CONFIG).replace("MODEL", repr(str(model))))
    flags = ["run", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(flags) == 0
    first, again = (tmp_path / "run" / name for name in ("01-prompts", "02-again"))
    assert (first / "prompts.jsonl").read_bytes() == (written / "prompts.jsonl").read_bytes()
    assert prompts.read(again / "prompts.jsonl") == prompts.read(first / "prompts.jsonl")[:3]
    monkeypatch.setattr(networks, "load", lambda *_, **__: pytest.fail("the model was opened"))
    capsys.readouterr()
    assert cli.main(flags) == 0 and capsys.readouterr().out.count("nothing to do") == 2
    assert cli.main([*flags, "--config.stages.prompts.tempreature=1"]) == 2
    done = json.loads((again / "done.json").read_text())
    assert done["product"] == "prompts.jsonl" and done["prompts"] == 3 and pathlib.Path(first / "config.json").is_file()


def test_default_instruction_fits_its_own_rules():
    asked = captions.request(0, captions.INSTRUCTION, ("road",), "all", 10)
    assert "Write 10 different" in asked.text and "(road)" in asked.text
