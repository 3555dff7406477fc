"""A run of stages of several kinds: networks, pseudo-labels from them, a network that learns those. Stopped anywhere, made by hand."""

import dataclasses
import itertools
import json
import pathlib
import shutil
import textwrap

import pytest
from PIL import Image
from processes import in_two

from segjax import cli
from segjax.runtime import loop
from segjax.verbs import (
    build,
    config_file,
    folder,
    pseudo_label_files,
    pseudo_label_work,
    report_labels,
    report_read,
    report_tables,
    stages,
)
from segjax.weights import safetensors_io

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
SYSTEM = """
    import sys

    sys.path.insert(0, CONFIGS)
    import base

    MODEL = {"make": "verbs_tiny_net:Tiny", "num_classes": 19, "dtype": "float32"}


    def get_config():
        config = base.run("system", steps=2, batch_size=2)
        config.log_every, config.checkpoint_every, config.mesh.data = 1, 1, 2
        scenes = {"make": base.STREET_SCENES, "size": (32, 64), "split": "train"}
        source, target = {**scenes, "look": "day", "length": 4}, {**scenes, "look": "dusk", "length": 5}
        data = {"source": source, "target": {**target, "labelled": False}, "crop": (32, 64)}
        shared = {"model": MODEL, "optimizer": {"name": "sgd", "lr": 1e-2, "momentum": 0.0}}
        scored = {"evaluate": {"dusk": {**scenes, "look": "dusk", "split": "val", "length": 2}}}
        base.add_stage(config, "one", method=base.fda(betas=(), greyscale=True), data=data, evaluate={}, **shared)
        base.add_stage(config, "two", method=base.source_only(), data=data, **scored, **shared)
        base.add_labels(config, "pseudo", networks=("one", "two"), dataset=target, style=source, beta=0.05, rule="code", batch_size=2)
        labelled = {"make": "segjax.data.pseudo:PseudoLabelled", "dataset": target, "labels": "{stage:pseudo}"}
        method = base.fda_contrastive(contrast_weight=0.0, target_ce_weight=1.0, target_ce_view="target", entropy_weight=0.0)
        parts = {**shared, **scored, "data": {**data, "target": labelled, "target_labels": True}}
        base.add_stage(config, "three", method=method, start_from="two", **parts)
        return config
"""
PLACES = ("01-one", "02-two", "03-pseudo", "04-three")


@pytest.fixture(scope="module")
def system(tiny_config) -> str:
    """The config's path, beside the tiny network's."""
    path = pathlib.Path(tiny_config).with_name("system.py")
    path.write_text(textwrap.dedent(SYSTEM).replace("CONFIGS", repr(str(CONFIGS))))
    return str(path)


@pytest.fixture(scope="module")
def whole(system, traced_once, tmp_path_factory) -> pathlib.Path:
    """The directory of a run that nothing disturbed. Read it only."""
    workdir = tmp_path_factory.mktemp("whole")
    assert cli.main(["run", f"--config={system}", f"--workdir={workdir}"]) == 0
    return workdir


def results(workdir: pathlib.Path) -> dict:
    """What a run has found, byte for byte where bytes do not depend on the time of the day."""
    found = {place: {k: v for k, v in folder.read_done(workdir / place).items() if k != "seconds"} for place in PLACES}
    labels = {path.name: path.read_bytes() for path in (workdir / "03-pseudo/labels").glob("*.png")}
    return {**found, "labels": labels, "pseudo": (workdir / "03-pseudo/pseudo.json").read_bytes()}


def test_the_last_stage_learned_the_pseudo_labels(whole):
    config = json.loads((whole / "04-three/config.json").read_text())
    assert config["data"]["target"]["labels"] == "{stage:pseudo}"  # wherever the run lies
    done = folder.read_done(whole / "03-pseudo")
    assert config["inputs"]["stages"] == {"pseudo": {"labels_sha256": done["labels_sha256"]}}
    rows = [json.loads(line) for line in (whole / "04-three/metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["target/labelled"] < 1 and row["loss/target_ce"] > 0 for row in rows if "loss/ce" in row)
    assert set(done["scores"]) == {"pseudo-labels", "pseudo-labels-all"} and not (whole / "03-pseudo/partial").exists()
    table = (whole / "results.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["one", "two", "pseudo", "three"]
    assert table[2].count("- |") == 3 and table[4].count("- |") == 1


def test_the_report_shows_the_pseudo_labels_of_every_stage(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "other")
    other = tmp_path / "other/03-pseudo/pseudo.json"
    summary = json.loads(other.read_text())
    index = summary["kept"].index(max(value for value in summary["kept"] if value is not None))
    summary["kept"][index] -= 0.2
    other.write_text(json.dumps(summary))
    runs = [report_read.read_run(path) for path in (whole, tmp_path / "other")]
    page = report_labels.labels(runs)
    assert f'<td title="± 14.1 over 2 runs">{100 * summary["kept"][index] + 10:.1f}</td>' in page
    assert page.count("<tr>") == 2 + 19 and page.count("<img") == 1 and "code 0.66, cap 0.9" in page
    one = report_read.read_run(whole)
    assert report_labels.labels([dataclasses.replace(one, stages=one.stages[:2])]) == ""
    rows = report_tables.summary([one]).split("<tr>")[2:]
    assert [row.count("<td") for row in rows] == [3, 3, 3, 3] and rows[0].count("–") == 3 and rows[2].count("–") == 1
    text = (whole / "report.html").read_text()
    assert 'id="labels"' in text and text.count("</section>") == text.count("<section") and "right of kept %" in text


def test_stopped_in_every_stage_it_ends_as_if_it_had_not_been(system, whole, tmp_path, monkeypatch):
    argv = ["run", f"--config={system}", f"--workdir={tmp_path}"]

    def stop_at(kind, place: str, number: int):
        """Asks to stop at the number-th step or batch in the stage `place`."""
        monkeypatch.undo()
        calls = itertools.count()
        here = lambda: (tmp_path / place / "lock").exists()
        monkeypatch.setattr(kind.Preemption, "requested", lambda self, step: "SIGTERM" if here() and next(calls) == number else None)

    for kind, place in ((loop, "01-one"), (loop, "02-two"), (pseudo_label_work, "03-pseudo"), (loop, "04-three")):
        stop_at(kind, place, 1)
        assert cli.main(argv) == 75, place
        assert folder.read_done(tmp_path / place) is None
    monkeypatch.undo()
    assert cli.main(argv) == 0
    assert results(tmp_path) == results(whole)


def test_killed_while_it_thresholds(system, whole, tmp_path, monkeypatch):
    for place in PLACES[:2]:
        shutil.copytree(whole / place, tmp_path / place)
    argv = ["pseudo-label", f"--config={system}", "--stage=pseudo", f"--workdir={tmp_path / '03-pseudo'}"]
    calls, finish = itertools.count(), pseudo_label_files.Files.finish
    monkeypatch.setattr(pseudo_label_files.Files, "finish", lambda *args: finish(*args) if next(calls) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(argv)
    assert folder.read_done(tmp_path / "03-pseudo") is None and (tmp_path / "03-pseudo/partial").is_dir()
    monkeypatch.undo()
    assert cli.main(argv) == 0
    shutil.copytree(whole / "04-three", tmp_path / "04-three")
    assert results(tmp_path) == results(whole)


def test_a_moved_run_is_still_the_same_run(system, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "moved")
    assert cli.main(["run", f"--config={system}", f"--workdir={tmp_path / 'moved'}"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 4


def test_a_changed_earlier_stage_is_noticed(system, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    argv = ["run", f"--config={system}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*argv, "--config.stages.pseudo.share=0.5"]) == 2
    assert "share: 0.66 -> 0.5" in capsys.readouterr().err
    assert cli.main([*argv, "--config.stages.pseudo.share=0.5", "--on-change=continue"]) == 0
    assert (results(tmp_path / "run")["labels"] != results(whole)["labels"]) and not (tmp_path / "run/03-pseudo/partial").exists()
    error = capsys.readouterr()
    assert error.out.count("nothing to do") == 2
    arrays, metadata = safetensors_io.read(tmp_path / "run/02-two/weights.safetensors")
    safetensors_io.write(tmp_path / "run/02-two/weights.safetensors", {k: v + 0.1 for k, v in arrays.items()}, metadata)
    assert cli.main([*argv, "--config.stages.pseudo.share=0.5"]) == 2
    error = capsys.readouterr().err
    assert "inputs.weights.two" in error and error.count("\n") == 1


def test_labels_that_are_not_whole_stop_the_next_stage_in_one_line(system, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    argv = ["train", f"--config={system}", "--stage=three", f"--workdir={tmp_path / 'run/04-three'}"]
    assert cli.main(argv) == 0 and "nothing to do" in capsys.readouterr().out
    label = tmp_path / "run/03-pseudo/labels/dusk-train-00001.png"
    label.write_bytes(label.read_bytes()[:-9])
    assert cli.main(argv) == 3
    error = capsys.readouterr().err
    assert "dusk-train-00001.png is damaged" in error and error.count("\n") == 1
    (tmp_path / "run/03-pseudo/pseudo.json").unlink()
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "no finished stage pseudo" in error and "segjax run" in error and error.count("\n") == 1


def test_by_hand_from_trained_stages_files_and_keys(system, whole, tmp_path, capsys):
    """The same labels whichever way the networks and the images are named."""
    shared = ["--rule=code", "--batch-size=2", "--beta=0.05"]
    named = ["--stage=one", "--stage=two", "--input=data.target", "--style=data.source"]
    argv = ["pseudo-label", f"--config={system}", f"--workdir={whole}", *named, *shared, f"--output={tmp_path / 'a'}"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "| vegetation" in out and "pseudo.png" in out and "5 images" in out
    stage = json.loads((whole / "03-pseudo/pseudo.json").read_text())
    found = json.loads((tmp_path / "a/pseudo.json").read_text())
    assert found["labels_sha256"] == stage["labels_sha256"] and "precision" in stage and "precision" not in found
    assert cli.main(argv) == 0 and "nothing to do" in capsys.readouterr().out
    assert cli.main([*argv, "--share=0.3"]) == 2 and "share: 0.66 -> 0.3" in capsys.readouterr().err
    images, labels = tmp_path / "images", tmp_path / "truth"
    scenes = config_file.load(system).stages.pseudo.dataset
    _write_scenes(scenes, images, labels)
    weights = [f"--weights={whole / place / folder.WEIGHTS}" for place in PLACES[:2]]
    files = ["pseudo-label", *weights, f"--input={images}", f"--labels={labels}", "--rule=code", f"--output={tmp_path / 'b'}"]
    assert cli.main(files) == 0
    assert "pseudo-labels: mIoU19" in capsys.readouterr().out
    plain = ["pseudo-label", f"--config={system}", f"--workdir={whole}", "--stage=one", "--stage=two", f"--input={images}", "--rule=code"]
    assert cli.main([*plain, f"--output={tmp_path / 'c'}"]) == 0
    assert (tmp_path / "b/labels.sha256").read_bytes() == (tmp_path / "c/labels.sha256").read_bytes()  # grey is in the file too


def test_without_a_rule_a_network_labels_as_it_is_scored(system, whole, tmp_path):
    flags = ["--stage=two", f"--workdir={whole}", "--input=evaluate.dusk", f"--output={tmp_path / 'out'}"]
    assert cli.main(["pseudo-label", f"--config={system}", *flags]) == 0
    ours, theirs = (
        json.loads(path.read_text()) for path in (tmp_path / "out/eval/pseudo-labels-input.json", whole / "02-two/eval/dusk-val.json")
    )
    assert ours["confusion"] == theirs["confusion"] and ours["iou"] == theirs["iou"]
    assert not (tmp_path / "out/eval/pseudo-labels-all-input.json").exists()  # every pixel is kept


def test_labels_of_another_origin_are_not_replaced(system, whole, tmp_path, capsys):
    (tmp_path / "data/labels").mkdir(parents=True)
    (tmp_path / "data/labels/precious.png").write_text("years of work")
    flags = ["--stage=one", f"--workdir={whole}", "--input=data.target", f"--output={tmp_path / 'data'}"]
    assert cli.main(["pseudo-label", f"--config={system}", *flags]) == 2
    assert "was not made by `segjax pseudo-label`" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["labels", "precious.png"]


def _write_scenes(spec, images: pathlib.Path, labels: pathlib.Path) -> None:
    data = build.dataset(build.plain(spec), "scenes")
    for index in range(2):
        for place, key in ((images, "image"), (labels, "label")):
            place.mkdir(exist_ok=True)
            Image.fromarray(data[index][key]).save(place / f"{index}.png")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (("--stage=pseudo",), 2, ["--workdir=DIR, the stage's own folder"]),
        (("--stage=pseudo", "--workdir={tmp}/03-pseudo"), 2, ["reads one, two", "do not lie finished beside"]),
        (("--stage=pseudo", "--workdir={tmp}", "--input={tmp}"), 2, ["leave out --input"]),
        (("--stage=one", "--workdir={tmp}"), 2, ["--input=DIR", "--output=DIR"]),
        (("--stage=one", "--workdir={tmp}", "--input={tmp}", "--output={tmp}/o"), 4, ["train stage one first"]),
        (
            ("--stage=one", "--workdir={run}", "--input=data.targt", "--output={tmp}/o"),
            3,
            ["no 'targt'", "known: broken", "source, target"],
        ),
        (("--stage=one", "--workdir={run}", "--input=data.crop", "--output={tmp}/o"), 2, ["is no data set"]),
        (("--stage=one", "--workdir={run}", "--input={tmp}", "--output={tmp}/o"), 3, ["holds no image file"]),
        (("--stage=one", "--workdir={run}", "--input=data.target", "--output={tmp}/o", "--beta=0.7"), 2, ["--beta=0.7"]),
        (("--stage=one", "--workdir={run}", "--input=data.target", "--output={tmp}/o", "--upsample=prediction"), 2, ["--upsample"]),
        (("--stage=on", "--input=data.target", "--output={tmp}/o"), 2, ["'on'", "did you mean 'one'"]),
        (("--stage=one", "--stage=two", "--weights=a", "--input=data.target", "--output={tmp}/o"), 2, ["name the one stage"]),
        (("--stage=one", "--weights={tmp}/none", "--input=data.target", "--output={tmp}/o"), 4, ["none: no such file"]),
        (("--config.stages.pseudo.networks=('on',)", "--stage=pseudo", "--workdir={tmp}"), 2, ["unknown stage 'on'"]),
        (("--config.stages.pseudo.rule=cod", "--stage=pseudo", "--workdir={tmp}"), 2, ["stages.pseudo.rule='cod'", "'code'"]),
    ],
)
def test_mistakes(changes, code, words, system, whole, tmp_path, capsys):
    argv = [part.replace("{tmp}", str(tmp_path)).replace("{run}", str(whole)) for part in changes]
    assert cli.main(["pseudo-label", f"--config={system}", *argv]) == code
    error = capsys.readouterr().err
    assert error.startswith("segjax: ") and error.count("\n") == 1 and all(word in error for word in words), error
    assert not (tmp_path / "o/labels").exists()


def test_networks_need_a_config_or_files(tmp_path, capsys):
    assert cli.main(["pseudo-label", f"--input={tmp_path}", f"--output={tmp_path / 'o'}"]) == 2
    assert "--weights=FILE" in capsys.readouterr().err
    assert cli.main(["pseudo-label", "--weights=none.safetensors", f"--input={tmp_path}", f"--output={tmp_path / 'o'}"]) == 4
    assert "none.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages.pseudo.verb": "pseudo-lable"}, ["verb='pseudo-lable'", "did you mean 'pseudo-label'"]),
        ({"stages.pseudo.verb": "no.such.module"}, ["verb='no.such.module'", "does not import"]),
        ({"stages.pseudo.verb": "json.decoder"}, ["json.decoder has no check_stage and run_stage"]),
        ({"stages.pseudo.networks": ("three",)}, ["pseudo.networks='three'", "expected an earlier stage: one, two"]),
        ({"stages.three.data.target.labels": "{stage:four}/x"}, ["three.data.target.labels='four'", "expected an earlier stage"]),
        ({"stages.pseudo.network": "one"}, ["stages.pseudo.network", "did you mean 'networks'"]),
        ({"stages.pseudo.dataset": {}}, ["stages.pseudo lacks dataset"]),
    ],
)
def test_a_mistake_in_a_later_stage_does_not_wait_for_the_first(changes, words, system, tmp_path, monkeypatch, capsys):
    load = config_file.load

    def changed(*args):
        config = load(*args)
        with config.unlocked():
            for path, value in changes.items():
                parent, _, key = path.rpartition(".")
                part = config
                for name in parent.split("."):
                    part = part[name]
                if key in part:
                    del part[key]
                part[key] = value
        return config

    monkeypatch.setattr(config_file, "load", changed)
    assert cli.main(["run", f"--config={system}", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert not list(tmp_path.iterdir())


def test_a_verb_of_a_fork_makes_stages(system, tmp_path, monkeypatch):
    fork = tmp_path / "fork"
    fork.mkdir()
    (fork / "fork_verb.py").write_text("def check_stage(config, name): pass\n\n\ndef run_stage(*args): return {}\n")
    (fork / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    config = config_file.load(system)
    with config.unlocked():
        config.stages.pseudo.verb = "fork.fork_verb"
    assert stages.module(config, "pseudo").run_stage() == {}


def test_data_actions_read_the_photographs_of_stages_that_make_labels(system, capsys):
    assert cli.main(["data", "check", f"--config={system}"]) == 0
    out = capsys.readouterr().out
    assert "config.stages.pseudo.dataset" in out and "three.data.target.labels" not in out, out


def test_two_processes_label_what_one_does(system, whole, tmp_path):
    """Each labels its half of every batch and thresholds its half of the images; one of them writes what is said of all."""
    for place in PLACES[:2]:
        shutil.copytree(whole / place, tmp_path / place)
    argv = ["pseudo-label", f"--config={system}", "--stage=pseudo", f"--workdir={tmp_path / '03-pseudo'}"]
    texts = in_two(argv, tmp_path / "cache", path=str(pathlib.Path(system).parent))
    assert sorted("| vegetation" in text for text in texts) == [False, True]
    two, one = (json.loads((place / "03-pseudo/pseudo.json").read_text()) for place in (tmp_path, whole))
    assert (two["images"], two["pixels"], two["sizes"], two["settings"]) == (one["images"], one["pixels"], one["sizes"], one["settings"])
    assert abs(two["kept_pixels"] - one["kept_pixels"]) < 2e-3 and max(map(abs, _differences(two, one, "thresholds"))) < 1e-3
    build.dataset({"make": "segjax.data.pseudo:PseudoLabelled", **_scenes(system), "labels": str(tmp_path / "03-pseudo")}, "data")


def _scenes(system: str) -> dict:
    return {"dataset": build.plain(config_file.load(system).stages.pseudo.dataset)}


def _differences(a: dict, b: dict, key: str) -> list[float]:
    return [x - y for x, y in zip(a[key], b[key], strict=True)]


def test_evaluate_takes_the_last_stage_that_has_a_network(system, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    argv = ["evaluate", f"--config={system}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*argv, "--config.order=('one','two','pseudo')"]) == 0
    assert "# dusk-val: 2 images" in capsys.readouterr().out
    assert cli.main([*argv, "--stage=pseudo"]) == 2
    assert "made by `segjax pseudo-label`" in capsys.readouterr().err
