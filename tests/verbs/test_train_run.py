"""`train` and `run`: a whole run of tiny stages, run again, resumed, refused, restarted; every mistake in one line with its exit code."""

import json
import os
import shutil

import pytest

from segjax import cli
from segjax.errors import Preempted
from segjax.runtime import workdir
from segjax.verbs import folder, train
from segjax.weights import safetensors_io

STAGES = ("01-source_only", "02-adabn", "03-fda")


def test_a_run_leaves_what_it_promises(finished):
    assert finished.code == 0, finished.out
    for stage in STAGES:
        place = finished.workdir / stage
        for name in ("config.json", "run.json", "metrics.jsonl", "checkpoints", "weights.safetensors", "done.json", "eval/dusk-val.json"):
            assert (place / name).exists(), f"{stage}/{name}"
    assert "<html" in (finished.workdir / "report.html").read_text()
    done = json.loads((finished.workdir / "03-fda/done.json").read_text())
    assert done["steps"] == 4 and set(done["scores"]) == {"dusk", "day"}
    assert done["weights_sha256"] == safetensors_io.sha256(finished.workdir / "03-fda/weights.safetensors")
    table = (finished.workdir / "results.md").read_text()
    assert table.strip() in finished.out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["source_only", "adabn", "fda"]


def test_adabn_started_from_source_only(finished):
    before, _ = safetensors_io.read(finished.workdir / "01-source_only/weights.safetensors")
    after, metadata = safetensors_io.read(finished.workdir / "02-adabn/weights.safetensors")
    assert metadata["label_space"] == "cityscapes19" and metadata["stage"] == "adabn"
    for name, value in before.items():
        assert (value == after[name]).all() == name.startswith("params/"), name


def test_the_same_command_again_does_nothing(finished, capsys):
    times = {path: path.stat().st_mtime_ns for path in finished.workdir.glob("*/done.json")}
    assert cli.main(["run", f"--config={finished.config}", f"--workdir={finished.workdir}"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 3
    assert times == {path: path.stat().st_mtime_ns for path in finished.workdir.glob("*/done.json")}


def test_settings_that_change_no_result_do_not_train_again(finished, capsys):
    argv = ["run", f"--config={finished.config}", f"--workdir={finished.workdir}"]
    assert cli.main([*argv, "--config.mesh.data=1", "--config.checkpoint_every=3"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 3


def test_an_interrupted_stage_goes_on_to_the_same_weights(finished, tmp_path, monkeypatch):
    """From its save alone: what it started from is not opened again."""
    monkeypatch.setattr(train.variables, "initial", lambda *_: pytest.fail("opened"))
    place = tmp_path / "03-fda"
    shutil.copytree(finished.workdir / "03-fda", place)
    shutil.copytree(finished.workdir / "01-source_only", tmp_path / "01-source_only")
    for left in ("done.json", "weights.safetensors"):
        (place / left).unlink()
    shutil.rmtree(place / "checkpoints/4")
    assert cli.main(["train", f"--config={finished.config}", "--stage=fda", f"--workdir={place}"]) == 0
    assert folder.read_done(place)["weights_sha256"] == folder.read_done(finished.workdir / "03-fda")["weights_sha256"]


def test_fda_started_from_source_only(finished):
    config = folder.read_json(finished.workdir / "03-fda/config.json")
    assert config["start_from"] == "source_only"
    before, _ = safetensors_io.read(finished.workdir / "01-source_only/weights.safetensors")
    after, _ = safetensors_io.read(finished.workdir / "03-fda/weights.safetensors")
    moved = max(abs(value - after[name]).max() for name, value in before.items() if name.startswith("params/"))
    assert 0 < moved < 0.1  # four Adam steps of 1e-3, not another draw


def test_train_finds_the_stage_that_it_starts_from(finished, tmp_path, capsys):
    argv = ["train", f"--config={finished.config}", "--stage=adabn", f"--workdir={tmp_path / '02-adabn'}"]
    assert cli.main(argv) == 2
    assert "--start=PATH" in capsys.readouterr().err
    shutil.copytree(finished.workdir / "01-source_only", tmp_path / "01-source_only")
    assert cli.main(argv) == 0
    assert folder.read_done(tmp_path / "02-adabn")["weights_sha256"] == folder.read_done(finished.workdir / "02-adabn")["weights_sha256"]


def test_other_settings_in_the_same_folder(finished, tmp_path, capsys):
    for stage in ("01-source_only", "03-fda"):
        shutil.copytree(finished.workdir / stage, tmp_path / stage)
    argv = [
        "train",
        f"--config={finished.config}",
        "--stage=fda",
        f"--workdir={tmp_path / '03-fda'}",
        "--config.stages.fda.optimizer.lr=0.5",
    ]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "optimizer.lr: 0.001 -> 0.5" in error and "--on-change" in error
    assert folder.read_done(tmp_path / "03-fda") is not None
    assert cli.main([*argv, "--on-change=restart"]) == 0
    assert folder.read_done(tmp_path / "old1-03-fda") is not None
    assert folder.read_done(tmp_path / "03-fda")["digest"] != folder.read_done(finished.workdir / "03-fda")["digest"]


def test_a_start_that_was_trained_anew_does_not_pass_off_old_checkpoints(finished, tmp_path, capsys):
    for stage in ("01-source_only", "02-adabn"):
        shutil.copytree(finished.workdir / stage, tmp_path / stage)
    arrays, metadata = safetensors_io.read(tmp_path / "01-source_only" / folder.WEIGHTS)
    changed = {name: value + 0.01 if name.endswith("conv/kernel") else value for name, value in arrays.items()}
    safetensors_io.write(tmp_path / "01-source_only" / folder.WEIGHTS, changed, metadata)
    argv = ["train", f"--config={finished.config}", "--stage=adabn", f"--workdir={tmp_path / '02-adabn'}"]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert "inputs.weights" in error and "--on-change=restart" in error and error.count("\n") == 1
    assert cli.main([*argv, "--on-change=restart"]) == 0
    after, _ = safetensors_io.read(tmp_path / "02-adabn" / folder.WEIGHTS)
    assert all((value == after[name]).all() for name, value in changed.items() if name.startswith("params/"))


def test_inputs_are_the_data_and_the_weights_bytes(finished):
    first, last = (folder.inputs(["data"], finished.workdir / stage / folder.WEIGHTS) for stage in (STAGES[0], STAGES[2]))
    assert first["data"] == last["data"] and first["weights"] != last["weights"]
    assert folder.digest({"inputs": first, "keep": 3}) == folder.digest({"inputs": first, "keep": 4})
    assert folder.digest({"inputs": first}) != folder.digest({"inputs": last})


def test_a_folder_in_use_is_left_alone(finished, tmp_path, capsys):
    shutil.copytree(finished.workdir / "01-source_only", tmp_path / "01-source_only")
    argv = ["train", f"--config={finished.config}", "--stage=source_only", f"--workdir={tmp_path / '01-source_only'}"]
    with workdir.claim(tmp_path / "01-source_only"):
        assert cli.main([*argv, "--config.stages.source_only.optimizer.lr=0.5", "--on-change=restart"]) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert folder.read_done(tmp_path / "01-source_only") is not None


def test_a_mistake_that_stopped_before_the_first_save_can_be_mended(tiny_config, tmp_path, monkeypatch):
    argv = ["train", f"--config={tiny_config}", "--stage=source_only", f"--workdir={tmp_path / 'out'}"]
    assert cli.main([*argv, "--config.stages.source_only.model.weights=none.safetensors"]) == 4
    trained = []
    monkeypatch.setattr(train.loop, "train", lambda *args, **kwargs: trained.append(1) or (_ for _ in ()).throw(Preempted("here")))
    assert cli.main(argv) == 75 and trained


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ((), 2, ["source_only, adabn, fda", "--stage=NAME"]),
        (("--stage=fad",), 2, ["'fad'", "did you mean 'fda'"]),
        (("--stage=source_only", "--config.batch_size=3"), 2, ["batch_size=3", "2 devices"]),
        (("--stage=source_only", "--config.mesh.data=999"), 2, ["999"]),
        (("--stage=source_only", "--config.stages.source_only.model.weights=none.safetensors"), 4, ["none.safetensors", "no such file"]),
        (("--stage=source_only", "--config.stages.source_only.model.weights={tmp}/junk.safetensors"), 4, ["junk.safetensors"]),
        (("--stage=source_only", "--workdir={tmp}/file/inside"), 2, ["--workdir", "cannot be written"]),
        (("--stage=source_only", "--config.stages.source_only.data.crop=(64,64)"), 3, ["crop 64x64 is larger than 64x32"]),
        (("--stage=source_only", "--config.stages.source_only.evaluate.dusk.look=noon"), 2, ["look='noon'"]),
    ],
)
def test_mistakes(changes, code, words, tiny_config, tmp_path, capsys):
    (tmp_path / "junk.safetensors").write_bytes(b"<html>not found</html>")
    (tmp_path / "file").write_text("")
    argv = [
        "train",
        f"--config={tiny_config}",
        f"--workdir={tmp_path / 'out'}",
        *(part.replace("{tmp}", str(tmp_path)) for part in changes),
    ]
    assert cli.main(argv) == code
    error = capsys.readouterr().err
    assert error.startswith("segjax: ") and error.count("\n") == 1, error
    assert all(word in error for word in words), error
    assert not (tmp_path / "out/checkpoints").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_workdir(tiny_config, tmp_path, capsys):
    tmp_path.chmod(0o555)
    assert cli.main(["train", f"--config={tiny_config}", "--stage=source_only", f"--workdir={tmp_path / 'out'}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_empty_folder_of_images(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    config = tmp_path / "empty.py"
    source = {"make": "segjax.data.folders:FolderDataset", "images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    config.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict("
        + repr(
            {
                "name": "empty",
                "order": ("only",),
                "stages": {
                    "only": {
                        "method": {"make": "segjax.methods.source_only:make"},
                        "model": {"make": "segjax.nets.enet:ENet", "num_classes": 19},
                        "optimizer": {"lr": 0.1},
                        "steps": 1,
                        "batch_size": 1,
                        "data": {"source": source, "crop": (32, 32)},
                        "evaluate": {},
                    }
                },
            }
        )
        + ")\n"
    )
    assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'out'}"]) == 3
    assert "images" in capsys.readouterr().err


def test_preempted_is_75(monkeypatch, tiny_config, tmp_path, capsys):
    def preempted(*args, **kwargs):
        raise Preempted("SIGTERM: saved step 2")

    monkeypatch.setattr(train.loop, "train", preempted)
    assert cli.main(["run", f"--config={tiny_config}", f"--workdir={tmp_path / 'out'}"]) == 75
    assert "saved step 2" in capsys.readouterr().err


def test_checkpoint_list_and_verify(finished, tmp_path, capsys):
    assert cli.main(["checkpoint", "list", f"--workdir={finished.workdir}"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("03-fda  step") == 2 and "02-adabn  step 2" in listed
    assert cli.main(["checkpoint", "verify", f"--workdir={finished.workdir}"]) == 0
    assert capsys.readouterr().out.count("good") == 5
    shutil.copytree(finished.workdir / "03-fda", tmp_path / "03-fda")
    largest = max((tmp_path / "03-fda/checkpoints/4").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert cli.main(["checkpoint", "verify", f"--workdir={tmp_path}"]) == 4
    captured = capsys.readouterr()
    assert "step 4" in captured.err and "DAMAGED" in captured.out and captured.out.count("good") == 1
    assert cli.main(["checkpoint", "list", f"--workdir={tmp_path / 'nothing'}"]) == 2


def test_processes_that_cannot_meet(monkeypatch, tiny_config, tmp_path, capsys):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    assert cli.main(["run", f"--config={tiny_config}", f"--workdir={tmp_path}"]) == 2
    assert "JAX_NUM_PROCESSES=two" in capsys.readouterr().err
