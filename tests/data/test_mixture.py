import numpy as np
import pytest
from coded import Coded, rare

from segjax.data.label_spaces import get
from segjax.data.mixture import Mixture, Part
from segjax.data.pipeline import training_batches
from segjax.data.sampling import class_balanced
from segjax.errors import ConfigError, DataError


def collect(source, **changes):
    return list(training_batches(source, **dict(batch_size=6, crop=(8, 8), seed=7, steps=20) | changes))


def numbers(batches, key="source_image"):
    return np.stack([batch[key][:, 0, 0, 0] for batch in batches])


def test_every_batch_holds_the_exact_shares():
    mixed = Mixture([Part(Coded(5), weight=2), Part(Coded(30, first=100), weight=1)])
    batches = collect(mixed, part_ids=True)
    found = numbers(batches)
    assert ((found >= 100).sum(1) == 2).all() and mixed.shares == (2 / 3, 1 / 3)
    assert all((batch["source_part"] == (batch["source_image"][:, 0, 0, 0] >= 100)).all() for batch in batches)
    # Each part runs through its own epochs.
    first, second = found[found < 100], found[found >= 100]
    assert all(sorted(first[n : n + 5]) == list(range(5)) for n in range(0, 80, 5)) and sorted(second[:30]) == list(range(100, 130))


def test_without_weights_parts_count_by_length_and_repeat():
    plain = numbers(collect(Mixture([Coded(4), Coded(2, first=100)])))
    assert ((plain >= 100).sum(1) == 2).all()
    repeated = numbers(collect(Mixture([Part(Coded(4)), Part(Coded(1, first=100), repeat=2.0)])))
    assert ((repeated >= 100).sum(1) == 2).all()


def test_the_order_is_the_hosts_and_the_seed_s():
    mixed = Mixture([Part(Coded(5), weight=1), Part(Coded(30, first=100), weight=2)])
    whole = numbers(collect(mixed))
    halves = [numbers(collect(mixed, process_index=p, process_count=2)) for p in range(2)]
    assert (whole == np.concatenate(halves, 1)).all() and (whole[7:] == numbers(collect(mixed, start_step=7))).all()
    assert (whole != numbers(collect(mixed, seed=8))).any()


def test_random_access():
    mixed = Mixture([Coded(3), Coded(4, (20, 10), first=100, labelled=False)])
    assert len(mixed) == 7 and mixed.labelled and [mixed[i]["image"][0, 0, 0] for i in range(7)] == [0, 1, 2, 100, 101, 102, 103]
    assert mixed.name(3) == "1:100.png" == mixed[3]["name"] and mixed.image_size(3) == (20, 10)
    assert (mixed[3]["label"] == 255).all() and (mixed.label(3) == mixed[3]["label"]).all() and (mixed.label(1) == 1).all()
    assert (mixed.image(4) == mixed[4]["image"]).all() and mixed.part_of(3) == (1, 0)
    bare = mixed.unlabelled()
    assert not bare.labelled and "label" not in bare[0] and repr(bare) == repr(mixed)


def test_parts_draw_by_class_and_nest():
    balanced = class_balanced(min_pixels=10, min_crop_ratio=0)
    inner = Mixture([Part(Coded(9, classes=rare), sampling=balanced), Part(Coded(9, first=50))])
    batches = collect(Mixture([Part(inner, weight=1), Part(Coded(4, first=100), weight=1)]), steps=60)
    found = numbers(batches).ravel()
    by_class = found[found < 50]
    assert len(by_class) == 90 and 0.5 < np.isin(by_class, (0, 3, 6)).mean() < 0.85  # 1/2 from class 1, and 1/3 of the rest
    whole = numbers(collect(Mixture([Coded(9, classes=rare), Coded(9, first=50, classes=rare)]), sampling=balanced)).ravel()
    assert np.isin(whole, (0, 3, 6, 50, 53, 56)).mean() > 0.5


def test_mistakes():
    other = Coded(3)
    other.label_space = get("synthia16")
    with pytest.raises(DataError, match=r"parts\[1\].*label space synthia16, but parts\[0\] has cityscapes19: set label_space"):
        Mixture([Coded(3), other])
    with pytest.raises(DataError, match=r"parts\[1\].*is empty"):
        Mixture([Coded(3), Coded(0)])
    with pytest.raises(ConfigError, match="needs parts"):
        Mixture([])
    with pytest.raises(ConfigError, match="give all parts a weight, or none"):
        Mixture([Part(Coded(3), weight=1), Coded(3)])
    with pytest.raises(ConfigError, match="positive"):
        Mixture([Part(Coded(3), weight=0), Part(Coded(3), weight=1)])
    weighted = Mixture([Part(Coded(3), weight=1), Part(Coded(3, first=9), weight=1)])
    with pytest.raises(ConfigError, match="move it into the parts"):
        collect(weighted, sampling=class_balanced(min_pixels=1))
