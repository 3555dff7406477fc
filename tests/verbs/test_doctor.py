"""`segjax doctor` on a good machine and on machines where something is missing."""

import argparse
import types

import jax
import pytest

from segjax.verbs import doctor


def answer(capsys) -> tuple[int, str]:
    code = doctor.run(argparse.Namespace())
    return code, capsys.readouterr().out


def test_a_good_machine(capsys):
    code, text = answer(capsys)
    assert code == 0, text
    for expected in ("jax " + jax.__version__, f"{len(jax.devices())} x cpu", "compiled step", "compile cache", "segjax can run here"):
        assert expected in text
    assert doctor.BAD not in text


def test_a_missing_and_an_old_package(capsys, monkeypatch):
    versions = {"flax": None, "jax": "0.4.30"}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else real(name))
    code, text = answer(capsys)
    assert code == 1
    assert "flax              not installed" in text and 'install "flax>=' in text
    assert "0.4.30, needs 0.10.0 or newer" in text and "2 things to mend" in text
    assert "compiled step" not in text  # nothing is imported that is not there


def test_optional_packages_are_a_note_with_a_command(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "wandb" else "99.0")
    notes = [f for f in doctor.packages(["jax>=0.10.0", 'wandb; extra == "wandb"']) if f.level != doctor.OK]
    assert [(f.level, f.what) for f in notes] == [(doctor.NOTE, "wandb")] and notes[0].fix.endswith('install "wandb"')


def test_versions_compare_as_numbers(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "0.10.2")
    assert {f.level for f in doctor.packages(["jax>=0.9.9", "jax[cuda13]>=0.10"])} == {doctor.OK}


def test_a_backend_that_is_not_there(capsys, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setattr(jax, "devices", fail)
    code, text = answer(capsys)
    assert code == 1 and "Unable to initialize backend" in text and "unset JAX_PLATFORMS (now 'tpu')" in text


@pytest.mark.parametrize(
    ("platform", "nvidia", "tpu", "level", "word"),
    [
        ("cpu", True, False, doctor.BAD, "jax[cuda13]"),
        ("cpu", False, True, doctor.BAD, "jax[tpu]"),
        ("cpu", False, False, doctor.NOTE, ""),
        ("gpu", True, False, doctor.OK, ""),
    ],
)
def test_an_idle_accelerator(platform, nvidia, tpu, level, word):
    finding = doctor.accelerator(platform, nvidia=nvidia, tpu=tpu)
    assert finding.level == level and word in finding.fix


def test_device_memory_is_told():
    device = types.SimpleNamespace(platform="gpu", device_kind="H200", memory_stats=lambda: {"bytes_limit": 3 * 2**30})
    (finding,) = doctor.device_lines([device, device])
    assert finding.value == "2 x gpu (H200), 3.0 GiB each"


def test_the_compile_cache_is_told_and_its_absence_explained(tmp_path):
    (tmp_path / "x-cache").touch()
    assert doctor.compile_cache(tmp_path, None) == (doctor.OK, "compile cache", f"{tmp_path}, 1 compiled programs", "")
    assert "SEGJAX_CACHE" in doctor.compile_cache(None, None).fix
    assert doctor.compile_cache(None, "").fix == "unset SEGJAX_CACHE"


def test_a_wrong_number_and_a_crash_are_reported(monkeypatch):
    monkeypatch.setattr(doctor, "_convolution_step", lambda devices: (float("nan"), 0.1, 0.1))
    assert doctor.tiny_step(jax.devices()).level == doctor.BAD

    def crash(devices):
        raise ValueError("ptxas too old")

    monkeypatch.setattr(doctor, "_convolution_step", crash)
    assert "ptxas too old" in doctor.tiny_step(jax.devices()).value
