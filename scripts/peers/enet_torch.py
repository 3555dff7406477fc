"""The yardstick of the workload `enet_train`: ENet (PyTorch form, its public parameter names) written plainly in torch."""

import torch
import training_torch
from torch import nn

SECTION = (
    ("regular", 1),
    ("dilated", 2),
    ("asymmetric", 1),
    ("dilated", 4),
    ("regular", 1),
    ("dilated", 8),
    ("asymmetric", 1),
    ("dilated", 16),
)


def unit(i, o, k=1, s=1, p=0, d=1, relu=False, act=True):
    layers = [nn.Conv2d(i, o, k, s, p, d, bias=False), nn.BatchNorm2d(o)]
    return [*layers, nn.ReLU() if relu else nn.PReLU()] if act else layers


class Initial(nn.Module):
    def __init__(self):
        super().__init__()
        self.main_branch, self.ext_branch = nn.Conv2d(3, 13, 3, 2, 1, bias=False), nn.MaxPool2d(3, 2, 1)
        self.batch_norm, self.out_activation = nn.BatchNorm2d(16), nn.PReLU()

    def forward(self, x):
        return self.out_activation(self.batch_norm(torch.cat([self.main_branch(x), self.ext_branch(x)], 1)))


class Bottleneck(nn.Module):
    def __init__(self, c, dilation=1, asymmetric=False, dropout=0.1, relu=False):
        super().__init__()
        n = c // 4
        middle = unit(n, n, (5, 1), 1, (2, 0)) + unit(n, n, (1, 5), 1, (0, 2)) if asymmetric else unit(n, n, 3, 1, dilation, dilation, relu)
        self.ext_conv1, self.ext_conv2 = nn.Sequential(*unit(c, n, relu=relu)), nn.Sequential(*middle)
        self.ext_conv3, self.drop = nn.Sequential(*unit(n, c, relu=relu)), nn.Dropout2d(dropout)
        self.out_activation = nn.ReLU() if relu else nn.PReLU()

    def forward(self, x):
        return self.out_activation(x + self.drop(self.ext_conv3(self.ext_conv2(self.ext_conv1(x)))))


class Down(nn.Module):
    def __init__(self, i, o, dropout):
        super().__init__()
        n = i // 4
        self.pool, self.pad, self.drop = nn.MaxPool2d(2, 2, return_indices=True), o - i, nn.Dropout2d(dropout)
        self.ext_conv1, self.ext_conv2 = nn.Sequential(*unit(i, n, 2, 2)), nn.Sequential(*unit(n, n, 3, 1, 1))
        self.ext_conv3, self.out_activation = nn.Sequential(*unit(n, o)), nn.PReLU()

    def forward(self, x):
        main, index = self.pool(x)
        main = nn.functional.pad(main, (0, 0, 0, 0, 0, self.pad))
        return self.out_activation(main + self.drop(self.ext_conv3(self.ext_conv2(self.ext_conv1(x))))), index


class Up(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        n = i // 4
        self.main_conv1, self.unpool = nn.Sequential(*unit(i, o, act=False)), nn.MaxUnpool2d(2)
        self.ext_conv1, self.ext_tconv1 = nn.Sequential(*unit(i, n, relu=True)), nn.ConvTranspose2d(n, n, 2, 2, bias=False)
        self.ext_tconv1_bnorm, self.ext_conv2 = nn.BatchNorm2d(n), nn.Sequential(*unit(n, o, act=False))
        self.drop = nn.Dropout2d(0.1)

    def forward(self, x, index):
        y = torch.relu(self.ext_tconv1_bnorm(self.ext_tconv1(self.ext_conv1(x))))
        return torch.relu(self.unpool(self.main_conv1(x), index) + self.drop(self.ext_conv2(y)))


class ENet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.initial_block, self.downsample1_0 = Initial(), Down(16, 64, 0.01)
        self.stage1 = [f"regular1_{n}" for n in range(1, 5)]
        for name in self.stage1:
            self.add_module(name, Bottleneck(64, dropout=0.01))
        self.downsample2_0, self.stage23 = Down(64, 128, 0.1), []
        for stage, first in ((2, 1), (3, 0)):
            for n, (kind, dilation) in enumerate(SECTION):
                self.stage23.append(f"{kind}{stage}_{n + first}")
                self.add_module(self.stage23[-1], Bottleneck(128, dilation, kind == "asymmetric"))
        self.upsample4_0, self.upsample5_0 = Up(128, 64), Up(64, 16)
        self.regular4_1, self.regular4_2 = Bottleneck(64, relu=True), Bottleneck(64, relu=True)
        self.regular5_1, self.transposed_conv = Bottleneck(16, relu=True), nn.ConvTranspose2d(16, classes, 3, 2, 1, 1, bias=False)

    def forward(self, x):
        x, first = self.downsample1_0(self.initial_block(x))
        for name in self.stage1:
            x = getattr(self, name)(x)
        x, second = self.downsample2_0(x)
        for name in self.stage23:
            x = getattr(self, name)(x)
        x = self.regular4_2(self.regular4_1(self.upsample4_0(x, second)))
        return self.transposed_conv(self.regular5_1(self.upsample5_0(x, first)))


def prepare(sizes, sets, variant, device):
    """Adam, cross-entropy at the image's own size."""
    return training_torch.prepare(
        ENet(sizes["classes"]),
        lambda parameters: torch.optim.Adam(parameters, 5e-4, fused=device == "cuda"),
        sets,
        variant,
        device,
        sizes["dtype"],
        image=lambda pixels: pixels / 255,
        loss=lambda logits, label: nn.functional.cross_entropy(logits, label, ignore_index=255),
    )
