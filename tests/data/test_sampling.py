import numpy as np
import pytest
from coded import Coded, rare

from segjax.data import sampling, statistics
from segjax.data.label_spaces import LabelSpace
from segjax.data.mixture import order_of
from segjax.data.pipeline import training_batches
from segjax.data.robust import generator
from segjax.data.sampling import ClassOrder, Interleave, Shuffled, class_balanced, count_labels, rare_class
from segjax.data.statistics import Statistics
from segjax.errors import ConfigError, DataError


def counted(counts):
    counts = np.asarray(counts, np.int64)
    space = LabelSpace("toy", tuple(f"class {k}" for k in range(counts.shape[1])), ((0, 0, 0),) * counts.shape[1])
    return Statistics(space, tuple(f"{n}.png" for n in range(len(counts))), counts)


@pytest.mark.parametrize("seed", [0, 1])
def test_probabilities_are_daformer_s(goldens, seed):
    vector = np.load(goldens / f"06b_rcs_ema_lr_s{seed}.npz")
    stats = counted(vector["in_counts"])
    for temperature, expected in zip(vector["par_T"], vector["out_rcs_prob"], strict=True):
        order = ClassOrder(stats, rare_class(temperature=float(temperature), min_pixels=0))
        np.testing.assert_allclose(order.probabilities[vector["out_rcs_class"]], expected, rtol=0, atol=5e-6)
        assert abs(order.probabilities.sum() - 1) < 1e-12 and np.count_nonzero(order.probabilities) == np.count_nonzero(stats.totals)


def test_draws_follow_the_probabilities_and_hold_the_class():
    counts = np.array([[9000, 4000, 0], [9000, 0, 4000], [9000, 2900, 3500], [9000, 3001, 0]])
    order = ClassOrder(counted(counts), rare_class(temperature=0.3))
    draws = [order(position, generator(7, position)) for position in range(4000)]
    drawn = np.array([draw.wanted.class_id for draw in draws])
    assert np.abs(np.bincount(drawn, minlength=3) / 4000 - order.probabilities).max() < 0.03
    assert {draw.index for draw in draws if draw.wanted.class_id == 1} == {0, 3}
    assert {draw.index for draw in draws if draw.wanted.class_id == 2} == {1, 2}
    assert draws[0].wanted[1:] == (1500, 10)
    # An element is a function of its position and the seed.
    assert draws[17] == order(17, generator(7, 17)) and any(draws[n] != order(n, generator(8, n)) for n in range(20))


def test_class_balanced_draws_every_class_alike():
    order = ClassOrder(counted([[10**6, 5000, 0], [10**6, 0, 4000]]), class_balanced())
    np.testing.assert_allclose(order.probabilities, 1 / 3)


def test_a_class_in_no_image_is_dropped_and_named(capsys):
    sampling._say.cache_clear()
    order = ClassOrder(counted([[9000, 4000, 12, 0]]), rare_class(temperature=1.0))
    line = capsys.readouterr().out
    assert "no image has more than 3000 pixels of class 2:" in line and "class 3" not in line
    assert (order.probabilities[2:] == 0).all() and abs(order.probabilities.sum() - 1) < 1e-12
    with pytest.raises(DataError, match="no image has more than 3000 pixels of any class"):
        ClassOrder(counted([[10, 10]]), rare_class())
    with pytest.raises(ConfigError, match="temperature=0"):
        rare_class(temperature=0)


def test_statistics_are_counted_once_and_kept(tmp_path, capsys):
    sampling._say.cache_clear()
    source = Coded(6, classes=rare)
    first = count_labels(source, "", folder=tmp_path)
    reads = len(source.label_reads)
    again = count_labels(source, "", folder=tmp_path)
    assert reads == 6 == len(source.label_reads) and (first.counts == again.counts).all() and first.counts[0, 1] == 16
    assert capsys.readouterr().out.count("counting 6 labels") == 1
    path = statistics.save(first, tmp_path / "elsewhere", source)
    assert (count_labels(source, str(path)).counts == first.counts).all() and len(source.label_reads) == 6
    count_labels(Coded(7, classes=rare), "", folder=tmp_path / "nobody", write=False)
    assert not (tmp_path / "nobody").exists()


def test_rare_class_crops_in_batches():
    options = dict(batch_size=8, crop=(6, 6), seed=3, steps=12)
    plain = np.concatenate([b["source_label"] for b in training_batches(Coded(9, classes=rare), **options)])
    knobs = rare_class(temperature=0.01, min_pixels=10, min_crop_ratio=0.5, redraws=40)
    chosen = np.concatenate([b["source_label"] for b in training_batches(Coded(9, classes=rare), sampling=knobs, **options)])

    def share(labels):
        return np.mean([(label == 1).sum() > 5 for label in labels])

    assert share(plain) < 0.2 and share(chosen) > 0.9
    with pytest.raises(ConfigError, match="class sampling needs labels"):
        order_of(Coded(3, labelled=False), rare_class(), 0, count_labels)


def test_shuffled_epochs():
    order = Shuffled(7, 5)
    epochs = np.array([order(n, generator(0, n)).index for n in range(70)]).reshape(10, 7)
    assert (np.sort(epochs, 1) == np.arange(7)).all() and len({tuple(epoch) for epoch in epochs}) > 5
    assert {order.another(order(0, generator(0, 0)), generator(0, n)).index for n in range(60)} == set(range(7))


@pytest.mark.parametrize("weights", [(2, 1), (1, 1, 1), (0.7, 0.2, 0.1), (24904, 10000), (1,)])
def test_interleave_is_exact_everywhere(weights):
    deal = Interleave(weights)
    parts, places = np.array([deal(n) for n in range(3000)]).T
    for part, share in enumerate(np.array(weights) / sum(weights)):
        mine = parts == part
        assert (places[mine] == np.arange(mine.sum())).all()
        assert np.abs(np.cumsum(mine) - share * np.arange(1, 3001)).max() < 2
    period = 3 if weights in ((2, 1), (1, 1, 1)) else 10 if len(weights) == 3 else None
    if period:
        counts = np.stack([np.bincount(parts[n : n + period], minlength=len(weights)) for n in range(0, 3000 - period, period)])
        assert (counts == counts[0]).all()
    assert deal(10**15)[0] < len(weights)


def test_interleave_wants_positive_weights():
    with pytest.raises(ConfigError, match="positive"):
        Interleave((1, 0))
