"""The yardstick of the workload `deeplab_r101_train`: DeepLabV2 on ResNet-101 (public names) written plainly in torch."""

import torch
import training_torch
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, i, width, stride, dilation, project):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Sequential(nn.Conv2d(i, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)) if project else None

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv2d_list = nn.ModuleList([nn.Conv2d(2048, classes, 3, 1, d, d) for d in (6, 12, 18, 24)])

    def forward(self, x):
        return sum(branch(x) for branch in self.conv2d_list)


class DeepLabV2(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.pool, i = nn.MaxPool2d(3, 2, 1, ceil_mode=True), 64
        for n, (depth, stride, dilation) in enumerate(zip((3, 4, 23, 3), (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            blocks = []
            for b in range(depth):
                blocks.append(Bottleneck(i, 64 * 2**n, stride if b == 0 else 1, dilation, b == 0))
                i = 256 * 2**n
            self.add_module(f"layer{n + 1}", nn.Sequential(*blocks))
        self.layer5 = Classifier(classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        return self.layer5(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


def loss(logits, label):
    logits = nn.functional.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=True)
    return nn.functional.cross_entropy(logits, label, ignore_index=255)


def prepare(sizes, sets, variant, device):
    """SGD with momentum; images in BGR minus Caffe's means, as the public weights want them."""
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434], device=device).reshape(1, 3, 1, 1)
    return training_torch.prepare(
        DeepLabV2(sizes["classes"]),
        lambda parameters: torch.optim.SGD(parameters, 2.5e-4, momentum=0.9, weight_decay=5e-4, fused=device == "cuda"),
        sets,
        variant,
        device,
        sizes["dtype"],
        image=lambda pixels: pixels.flip(1) - mean,
        loss=loss,
    )
