"""The yardstick of the workload `clip_resnet`: CLIP's ResNet (openai/CLIP model.py, its names) written plainly in torch."""

import forward_torch
import torch
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, i, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        parts = {"-1": self.pool, "0": nn.Conv2d(i, 4 * width, 1, bias=False), "1": nn.BatchNorm2d(4 * width)}
        self.downsample = nn.Sequential()
        if stride > 1 or i != 4 * width:
            for name, part in parts.items():
                self.downsample.add_module(name, part)

    def forward(self, x):
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(self.pool(y))) + self.downsample(x))


class AttentionPool(nn.Module):
    def __init__(self, side, width, heads, embed_dim):
        super().__init__()
        self.positional_embedding, self.heads = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5), heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x)))
        return self.c_proj(y.transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    def __init__(self, image_size, width, layers, heads, embed_dim):
        super().__init__()
        half, i = width // 2, width
        for n, (before, features, stride) in enumerate(((3, half, 2), (half, half, 1), (half, width, 1)), 1):
            self.add_module(f"conv{n}", nn.Conv2d(before, features, 3, stride, 1, bias=False))
            self.add_module(f"bn{n}", nn.BatchNorm2d(features))
        for n, depth in enumerate(layers):
            blocks = []
            for b in range(depth):
                blocks.append(Bottleneck(i, width * 2**n, 2 if n and b == 0 else 1))
                i = 4 * width * 2**n
            self.add_module(f"layer{n + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(image_size // (4 * 2 ** (len(layers) - 1)), i, heads, embed_dim)
        self.stages = len(layers)

    def forward(self, image):
        x = image
        for n in (1, 2, 3):
            x = torch.relu(getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(x)))
        x = nn.functional.avg_pool2d(x, 2)
        for n in range(self.stages):
            x = getattr(self, f"layer{n + 1}")(x)
        return self.attnpool(x)


def prepare(sizes, sets, variant, device):
    return forward_torch.prepare(
        ModifiedResNet(*(sizes[name] for name in ("image_size", "width", "layers", "heads", "embed_dim"))),
        sizes,
        sets,
        variant,
        device,
        arguments=lambda image: {"image": image},
        answer=lambda found: found,
        prefix="visual.",
        images=("image",),
    )
