import numpy as np

from segjax.data.transforms import resize_image, resize_label


def test_resize():
    y, x = np.mgrid[:24, :40].astype(np.uint8)
    image, label = np.stack([4 * y, 4 * x, 0 * y], -1), x
    larger = resize_image(image, (48, 80))
    # Half-pixel centres: output column 2j+1 lies a quarter of a pixel right of input column j.
    assert larger.shape == (48, 80, 3) and larger[10, 21, 1] == 41 and larger[10, 22, 1] == 43
    assert (resize_label(label, (12, 80)) == np.repeat(np.arange(40), 2)).all()
