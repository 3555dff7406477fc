import json

import numpy as np
import pytest
from coded import Coded, rare
from PIL import Image

from segjax.data.folders import FolderDataset
from segjax.data.mixture import Mixture, Part
from segjax.data.pipeline import training_batches
from segjax.data.robust import Broken, Ledger, Policy
from segjax.data.sampling import rare_class
from segjax.errors import ConfigError, DataError


def collect(source, target=None, **changes):
    options = dict(batch_size=4, crop=(8, 8), seed=7, steps=10, broken_share=0.5) | changes
    return list(training_batches(source, target, **options))


def numbers(batches):
    return np.stack([batch["source_image"][:, 0, 0, 0] for batch in batches])


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_other_elements_stay_what_they_are(policy):
    whole, broken = collect(Coded(7)), collect(Coded(7, bad=(2, 5)), broken=policy)
    hit = np.isin(numbers(whole), (2, 5))
    assert hit.any() and not np.isin(numbers(broken), (2, 5)).any()
    for one, other, rows in zip(whole, broken, hit, strict=True):
        assert all((one[key][~rows] == other[key][~rows]).all() for key in one)
    assert "broken" not in broken[0]
    resumed = collect(Coded(7, bad=(2, 5)), broken=policy, start_step=6)
    assert (numbers(broken)[6:] == numbers(resumed)).all()


def test_skip_takes_the_next_record_of_the_order():
    whole, skipped = numbers(collect(Coded(7))).ravel(), numbers(collect(Coded(7, bad=(2, 5)), broken="skip")).ravel()
    for position, number in enumerate(whole[:-3]):
        assert skipped[position] == next(n for n in whole[position:] if n not in (2, 5)), number


def test_replace_keeps_the_part_and_the_class():
    sampled = Part(Coded(9, classes=rare, bad=(0,)), weight=1, sampling=rare_class(temperature=0.01, min_pixels=10, min_crop_ratio=0))
    mixed = Mixture([sampled, Part(Coded(9, first=100, bad=(1, 2, 3)), weight=1)])
    found = numbers(collect(mixed, broken="replace", steps=40)).ravel()
    assert (found >= 100).sum() == 80 and not np.isin(found, (0, 101, 102, 103)).any()
    assert np.isin(found[found < 100], (3, 6)).mean() > 0.9


def test_raise_is_the_default():
    with pytest.raises(DataError, match="2.png cannot be read"):
        collect(Coded(7, bad=(2,)))
    with pytest.raises(ConfigError, match="data.broken='ignore': expected one of raise, skip, replace"):
        collect(Coded(7), broken="ignore")
    with pytest.raises(ConfigError, match="data.broken_share=2"):
        collect(Coded(7), broken_share=2)


def test_the_first_record_may_be_broken():
    assert len(collect(Coded(7, bad=(0, 1)), broken="skip")) == 10
    with pytest.raises(DataError, match="5.png cannot be read"):
        collect(Coded(6, bad=range(6)), broken="skip", broken_share=1.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_the_cap_stops(workers):
    assert len(collect(Coded(10, bad=(2,)), broken="skip", broken_share=0.1)) == 10
    with pytest.raises(DataError, match="2 of the 10 source records are broken, more than data.broken_share=0.1 allows"):
        collect(Coded(10, bad=(2, 5)), broken="skip", broken_share=0.1, workers=workers)


def planted(folder):
    """Six pairs, one image cut off and one label an HTML page."""
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 24, 3)).astype(np.uint8)).save(folder / "images" / f"{n}.png")
        Image.fromarray(rng.integers(0, 2, (16, 24)).astype(np.uint8)).save(folder / "labels" / f"{n}.png")
    cut = folder / "images" / "3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "labels" / "4.png").write_text("<!DOCTYPE html><html>log in</html>")
    return FolderDataset(str(folder / "images"), str(folder / "labels"), encoding="trainId")


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_planted_files_are_listed_once(tmp_path, capsys, policy):
    dataset, path = planted(tmp_path), tmp_path / "run" / "broken.jsonl"
    with pytest.raises(DataError, match="3.png cannot be read|4.png cannot be read"):
        collect(dataset)
    sampling = rare_class(temperature=1.0, min_pixels=1)  # its statistics pass over the unreadable label
    ledger = Ledger(path)
    first = collect(dataset, dataset, sampling=sampling, broken=policy, ledger=ledger, steps=5)
    rest = collect(dataset, dataset, sampling=sampling, broken=policy, ledger=Ledger(path), start_step=5, steps=20)
    whole = collect(dataset, dataset, sampling=sampling, broken=policy, steps=20)
    assert all((a[key] == b[key]).all() for a, b in zip(first + rest, whole, strict=True) for key in a)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = [(row["role"], row["name"]) for row in rows]
    assert len(set(names)) == len(names) and {("source", "3.png"), ("target", "3.png")} <= set(names) <= {
        (role, f"{n}.png") for role in ("source", "target") for n in (3, 4)
    }
    assert ("target", "4.png") not in names  # the target's labels are not opened
    assert all("cannot be read" in row["message"] for row in rows)
    assert "broken source record" in capsys.readouterr().out
    assert Ledger(path).count == len(names) and Ledger(path).metrics() == {"data/broken": len(names)}


def test_the_ledger_counts_on_after_a_restart(tmp_path):
    path, policy = tmp_path / "broken.jsonl", Policy("skip", 0.2)
    Ledger(path).note(Broken("source", "a.png", "a.png is cut off"), 10, policy)
    path.write_text(path.read_text() + '{"role": "sour')  # a kill in the middle of a line
    ledger = Ledger(path)
    ledger.note(Broken("source", "a.png", "a.png is cut off"), 10, policy)
    ledger.note(Broken("source", "b.png", "b.png is cut off"), 10, policy)
    assert ledger.count == 2 and Ledger(path).count == 2
    with pytest.raises(DataError, match="3 of the 10 source records"):
        ledger.note(Broken("source", "c.png", "c.png is cut off"), 10, policy)
    assert Ledger().metrics() == {}
