"""The yardstick of `scripts/bench_nets.py`: ENet (PyTorch form) written plainly in torch, eager, NCHW, with Adam."""

import torch
from torch import nn


def unit(i, o, k=1, s=1, p=0, d=1, relu=False, act=True):
    layers = [nn.Conv2d(i, o, k, s, p, d, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU() if relu else nn.PReLU()] if act else []))


class Bottleneck(nn.Module):
    def __init__(self, c, d=1, asymmetric=False, p=0.1, relu=False):
        super().__init__()
        n = c // 4
        if asymmetric:
            middle = [unit(n, n, (5, 1), 1, (2, 0), relu=relu), unit(n, n, (1, 5), 1, (0, 2), relu=relu)]
        else:
            middle = [unit(n, n, 3, 1, d, d, relu=relu)]
        self.ext = nn.Sequential(unit(c, n, relu=relu), *middle, unit(n, c, relu=relu), nn.Dropout2d(p))
        self.act = nn.ReLU() if relu else nn.PReLU()

    def forward(self, x):
        return self.act(x + self.ext(x))


class Down(nn.Module):
    def __init__(self, i, o, p):
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.ext = nn.Sequential(unit(i, i // 4, 2, 2), unit(i // 4, i // 4, 3, 1, 1), unit(i // 4, o), nn.Dropout2d(p))
        self.act, self.pad = nn.PReLU(), o - i

    def forward(self, x):
        main, index = self.pool(x)
        return self.act(nn.functional.pad(main, (0, 0, 0, 0, 0, self.pad)) + self.ext(x)), index


class Up(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.main, self.unpool = unit(i, o, act=False), nn.MaxUnpool2d(2)
        n = i // 4
        self.ext = nn.Sequential(unit(i, n, relu=True), nn.ConvTranspose2d(n, n, 2, 2, bias=False), nn.BatchNorm2d(n), nn.ReLU())
        self.last = nn.Sequential(unit(n, o, act=False), nn.Dropout2d(0.1))

    def forward(self, x, index):
        return torch.relu(self.unpool(self.main(x), index) + self.last(self.ext(x)))


class ENet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 13, 3, 2, 1, bias=False), nn.MaxPool2d(3, 2, 1)
        self.norm, self.act = nn.BatchNorm2d(16), nn.PReLU()
        self.down1, self.stage1 = Down(16, 64, 0.01), nn.Sequential(*[Bottleneck(64, p=0.01) for _ in range(4)])
        self.down2 = Down(64, 128, 0.1)
        self.stage23 = nn.Sequential(*[Bottleneck(128, max(d, 1), d == 0) for d in (1, 2, 0, 4, 1, 8, 0, 16) * 2])
        self.up4, self.stage4 = Up(128, 64), nn.Sequential(Bottleneck(64, relu=True), Bottleneck(64, relu=True))
        self.up5, self.stage5 = Up(64, 16), Bottleneck(16, relu=True)
        self.last = nn.ConvTranspose2d(16, classes, 3, 2, 1, 1, bias=False)

    def forward(self, x):
        x = self.act(self.norm(torch.cat([self.conv(x), self.pool(x)], 1)))
        x, first = self.down1(x)
        x, second = self.down2(self.stage1(x))
        x = self.stage4(self.up4(self.stage23(x), second))
        return self.last(self.stage5(self.up5(x, first)))


def train_step(classes: int = 19, learning_rate: float = 5e-4):
    """A function (image NCHW float, label NHW int64) -> loss that makes one Adam step."""
    net = ENet(classes).train()
    assert sum(p.numel() for p in net.parameters()) == 351660 - 144 * (19 - classes)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)

    def step(image, label):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(net(image), label, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
