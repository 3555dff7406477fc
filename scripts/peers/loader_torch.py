"""The yardstick of `scripts/bench_loader.py`: a PyTorch DataLoader over image and label files, as a process of its own.

The work of a usual segmentation pipeline: decode with PIL, scale image (bilinear) and label (nearest) by one random factor, pad, crop,
flip, map the ids, collate. `python loader_torch.py LIST.txt H W LOW HIGH BATCH WORKERS`; then every line N on stdin reads N batches and
answers with {"images", "wall_s", "cpu_s"}.
"""

import json
import pathlib
import random
import sys

import numpy as np
import torch
from PIL import Image
from turns import measure

IGNORE = 255


class Pairs(torch.utils.data.Dataset):
    def __init__(self, list_file, crop, scale):
        root = pathlib.Path(list_file).parent
        self.pairs = [[root / word for word in line.split()] for line in pathlib.Path(list_file).read_text().splitlines() if line.strip()]
        self.crop, self.scale = crop, scale
        self.table = np.full(256, IGNORE, np.uint8)
        self.table[:11] = np.arange(11)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        image, label = Image.open(self.pairs[index][0]).convert("RGB"), Image.open(self.pairs[index][1])
        factor = random.uniform(*self.scale)
        size = round(image.width * factor), round(image.height * factor)
        image = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        label = self.table[np.asarray(label.resize(size, Image.Resampling.NEAREST))]
        height, width = self.crop
        if size[1] < height or size[0] < width:
            below, right = max(height - size[1], 0), max(width - size[0], 0)
            image = np.pad(image, ((0, below), (0, right), (0, 0)))
            label = np.pad(label, ((0, below), (0, right)), constant_values=IGNORE)
        y, x = random.randint(0, image.shape[0] - height), random.randint(0, image.shape[1] - width)
        image, label = image[y : y + height, x : x + width], label[y : y + height, x : x + width]
        if random.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        return torch.from_numpy(image.copy()), torch.from_numpy(label.copy())


def forever(loader):
    while True:
        yield from loader


def main():
    list_file, *numbers = sys.argv[1:]
    height, width, low, high, batch, workers = (float(number) for number in numbers)
    torch.set_num_threads(1)
    dataset = Pairs(list_file, (int(height), int(width)), (low, high))
    options = {"persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
    loader = torch.utils.data.DataLoader(dataset, int(batch), shuffle=True, num_workers=int(workers), drop_last=True, **options)
    batches = forever(loader)
    for line in sys.stdin:
        found = measure(batches, int(line), int(workers), lambda batch: len(batch[0]))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
