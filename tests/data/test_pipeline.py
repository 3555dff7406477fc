import hashlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from coded import Coded, rare

from segjax.data.mixture import Mixture, Part
from segjax.data.pipeline import training_batches
from segjax.data.sampling import rare_class
from segjax.errors import ConfigError, DataError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def collect(source=None, target=None, **changes):
    options = dict(batch_size=4, crop=(8, 8), scale=(0.8, 1.5), seed=7, steps=6) | changes
    return list(training_batches(source or Coded(7), target, **options))


def same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() and one[key].dtype == np.uint8 for key in one)


def test_shapes_pairing_and_different_sizes():
    batches = collect(Coded(7), Coded(5, (20, 10)), target_batch_size=2)
    assert len(batches) == 6
    for batch in batches:
        assert {key: value.shape for key, value in batch.items()} == {
            "source_image": (4, 8, 8, 3),
            "source_label": (4, 8, 8),
            "target_image": (2, 8, 8, 3),
        }
        known = batch["source_label"] != 255
        assert (batch["source_image"][..., 0][known] == batch["source_label"][known]).all()


def test_each_epoch_visits_every_example_once_in_a_new_order():
    seen = np.concatenate([b["source_label"][:, 0, 0] for b in collect(Coded(8), scale=(1, 1), steps=8)]).reshape(4, 8)
    assert (np.sort(seen, axis=1) == np.arange(8)).all()
    assert len({tuple(epoch) for epoch in seen}) > 1
    other = collect(Coded(8), scale=(1, 1), steps=8, seed=8)
    assert any((a["source_label"] != b["source_label"]).any() for a, b in zip(collect(Coded(8), scale=(1, 1), steps=8), other, strict=True))


def test_source_and_target_take_different_orders():
    batches = collect(Coded(8), Coded(8), scale=(1, 1), steps=4)
    assert any((b["source_image"][:, 0, 0, 0] != b["target_image"][:, 0, 0, 0]).any() for b in batches)


def test_resume_is_exact():
    whole = collect(Coded(7), Coded(5))
    same(whole[2:], collect(Coded(7), Coded(5), start_step=2))
    same(whole[:3], collect(Coded(7), Coded(5), steps=3))
    assert collect(start_step=6) == []


def test_hosts_share_one_order():
    whole = collect(Coded(7), Coded(5), start_step=1)
    halves = [collect(Coded(7), Coded(5), start_step=1, process_index=p, process_count=2) for p in range(2)]
    same(whole, [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)])


def test_workers_stop_with_the_iterator():
    before = len(multiprocessing.active_children())
    iterator = training_batches(Coded(7), batch_size=4, crop=(8, 8), seed=7, steps=1000, workers=1)
    next(iterator)
    assert len(multiprocessing.active_children()) > before
    iterator.close()
    deadline = time.time() + 20
    while len(multiprocessing.active_children()) > before and time.time() < deadline:
        time.sleep(0.1)
    assert len(multiprocessing.active_children()) == before


def test_workers_die_with_a_trainer_that_was_killed(tmp_path):
    program = """
import multiprocessing, os, signal
from segjax.data.pipeline import training_batches
from segjax.data.procedural import StreetScenes
if __name__ == "__main__":
    batches = training_batches(StreetScenes(size=(32, 64)), batch_size=2, crop=(32, 64), seed=0, steps=10**6, workers=2)
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "program.py").write_text(program)
    run = subprocess.run([sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    workers = [int(word) for word in run.stdout.split()]
    assert run.returncode == -signal.SIGKILL and len(workers) == 2
    deadline = time.time() + 40
    while (alive := [pid for pid in workers if _alive(pid)]) and time.time() < deadline:
        time.sleep(0.2)
    assert alive == []


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead process that nobody has waited for still answers; its state says Z.
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_reaches_the_caller(workers):
    with pytest.raises(Exception, match="3.png cannot be read") as caught:
        collect(Coded(7, bad=(3,)), workers=workers)
    assert isinstance(caught.value, DataError)


def test_target_labels_are_never_read():
    target = Coded(5)
    assert "target_label" not in collect(Coded(7), target)[0] and target.label_reads == []
    with_labels = collect(Coded(7), target, target_labels=True, scale=(1, 1))[0]
    assert (with_labels["target_label"] == with_labels["target_image"][..., 0]).all()


def test_errors_come_before_the_first_batch():
    options = dict(batch_size=4, crop=(8, 8), seed=0, steps=1)
    with pytest.raises(DataError, match="is empty"):
        training_batches(Coded(0), **options)
    with pytest.raises(DataError, match="crop 64x64 is larger than 16x12 in 0.png"):
        training_batches(Coded(3), **options | {"crop": (64, 64)})
    with pytest.raises(DataError, match="crop 8x8 is larger than 6x6"):
        training_batches(Coded(3), Coded(3, (6, 6)), **options)
    with pytest.raises(DataError, match="must be labelled"):
        training_batches(Coded(3, labelled=False), **options)
    with pytest.raises(ConfigError, match="batch_size=4 must be a positive multiple of the 3 processes"):
        training_batches(Coded(3), process_count=3, **options)
    with pytest.raises(ConfigError, match="scale"):
        training_batches(Coded(3), scale=(2, 1), **options)
    with pytest.raises(ConfigError, match="data.workers=-1"):
        training_batches(Coded(3), workers=-1, **options)


def test_a_batch_larger_than_the_data_set_repeats_it():
    batch = collect(Coded(2), batch_size=6, scale=(1, 1), steps=1)[0]
    assert np.bincount(batch["source_label"][:, 0, 0]).tolist() == [3, 3]


def test_roles_have_crops_of_their_own():
    batch = collect(
        Coded(7), Coded(5, (40, 60)), source_crops={"crop": (6, 10)}, target_crops={"crop": (20, 16), "scale": (1, 1)}, steps=1
    )[0]
    assert batch["source_image"].shape == (4, 6, 10, 3) and batch["source_label"].shape == (4, 6, 10)
    assert batch["target_image"].shape == (4, 20, 16, 3)
    assert (np.diff(batch["target_image"][..., 1].astype(int), axis=1) == 1).all()  # not scaled


def test_a_batch_of_two_resolutions():
    parts = ({"resize": (12, 16)}, {"resize": (24, 32)})
    knobs = dict(source_crops=parts, crop=(12, 16), scale=(1, 1), flip=False, steps=10)
    batches = collect(Coded(4), Coded(4), target_crops={"resize": (24, 32)}, **knobs)
    for batch in batches:
        assert {key: value.shape for key, value in batch.items()} == {
            "source_image": (4, 12, 16, 3),
            "source_label": (4, 12, 16),
            "target_image": (4, 12, 16, 3),
        }
        reach = np.ptp(batch["source_image"][..., 2].astype(int), axis=(1, 2))
        assert (np.sort(reach)[:2] < 9).all() and (np.sort(reach)[2:] == 15).all()
    # Each resolution runs through its own epochs.
    low = np.stack([b["source_label"][:, 0, 0][np.ptp(b["source_image"][..., 2].astype(int), axis=(1, 2)) == 15] for b in batches])
    assert all(sorted(low.ravel()[n : n + 4]) == [0, 1, 2, 3] for n in range(0, 20, 4))
    same(batches[3:], collect(Coded(4), Coded(4), target_crops={"resize": (24, 32)}, start_step=3, **knobs))
    with pytest.raises(ConfigError, match="one crop size"):
        collect(source_crops=({"crop": (4, 4)}, {"crop": (8, 8)}))


def thousand(start=0, stop=100, **place):
    """SHA-256 of each of the first elements of everything at once: mixture, class sampling, two resolutions, broken records."""
    sampled = Part(Coded(9, classes=rare, bad=(2,)), weight=2, sampling=rare_class(min_pixels=10, min_crop_ratio=0.5))
    source = Mixture([sampled, Part(Coded(20, first=100, bad=(3, 4)), weight=1)])
    batches = training_batches(
        source,
        Coded(11, (20, 30), bad=(5,)),
        **dict(batch_size=10, crop=(6, 8), scale=(0.7, 1.5), seed=11, start_step=start, steps=stop) | place,
        target_crops=({"resize": (12, 16)}, {"resize": (24, 32), "share": 3}),
        quality={"max_share": 0.75, "redraws": 2},
        part_ids=True,
        broken="skip",
        broken_share=0.2,
    )
    return [
        hashlib.sha256(b"".join(batch[key][row].tobytes() for key in sorted(batch))).hexdigest()
        for batch in batches
        for row in range(len(batch["source_image"]))
    ]


def on_hosts(count, start=0, stop=100, **place):
    """The same, put together from the rows of each host."""
    parts = [np.array(thousand(start, stop, process_index=p, process_count=count, **place)).reshape(stop - start, -1) for p in range(count)]
    return np.concatenate(parts, 1).ravel().tolist()


def test_the_first_thousand_elements_whatever_reads_them():
    whole = thousand()
    assert len(whole) == 1000 and len(set(whole)) > 990
    # Stopped and taken up again by other numbers of workers and hosts.
    assert on_hosts(2, 0, 45) + thousand(45, 70, workers=2) + on_hosts(5, 70, 100) == whole
