"""CLIP's preprocessing against transformers' and by hand."""

import numpy as np
import pytest

from segjax.data.clip_images import centre_square, stretched


@pytest.mark.parametrize("shape, size", [((60, 100), 32), ((100, 60), 32), ((48, 48), 48), ((20, 30), 48), ((33, 64), 32)])
def test_it_is_transformers_clip_processor(shape, size):
    processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = processors.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_rescale=False, do_normalize=False
    )
    there = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_array_equal(centre_square(image, size), there)


def test_squares_and_stretching():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, 4:12] = 255
    assert centre_square(image, 8).min() == 255  # the middle alone
    assert stretched(image, (4, 6)).shape == (4, 6, 3)
    np.testing.assert_array_equal(stretched(image, (8, 16)), image)
