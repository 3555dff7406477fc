"""The yardstick of the workloads `mit_block` and `mit_gradients`: MiT as NVlabs/SegFormer names it, with torch's own attention.

Forward and backward from the sum of the cubes of the outputs.
"""

import torch
from serve import Prepared
from torch import nn

VARIANTS = ("eager",)
HEADS, RATIOS, WIDTHS, PATCHES, STRIDES = (1, 2, 5, 8), (8, 4, 2, 1), (64, 128, 320, 512), (7, 3, 3, 3), (4, 2, 2, 2)


class Attention(nn.Module):
    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if ratio > 1:
            self.sr, self.norm = nn.Conv2d(dim, dim, ratio, ratio), nn.LayerNorm(dim)

    def forward(self, x, h, w):
        b, n, c = x.shape
        small = x
        if self.ratio > 1:
            small = self.norm(self.sr(x.transpose(1, 2).reshape(b, c, h, w)).flatten(2).transpose(1, 2))
        split = lambda y: y.reshape(b, -1, self.heads, c // self.heads).transpose(1, 2)
        key, value = map(split, self.kv(small).chunk(2, -1))
        y = nn.functional.scaled_dot_product_attention(split(self.q(x)), key, value)
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


class Depthwise(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, x, h, w):
        b, n, c = x.shape
        return self.dwconv(x.transpose(1, 2).reshape(b, c, h, w)).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, 4 * dim), Depthwise(4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x, h, w):
        return self.fc2(nn.functional.gelu(self.dwconv(self.fc1(x), h, w)))


class Block(nn.Module):
    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn, self.mlp = Attention(dim, heads, ratio), Mlp(dim)

    def forward(self, x, h, w):
        x = x + self.attn(self.norm1(x), h, w)
        return x + self.mlp(self.norm2(x), h, w)


class Patches(nn.Module):
    def __init__(self, i, dim, patch, stride):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(i, dim, patch, stride, patch // 2), nn.LayerNorm(dim)

    def forward(self, x):
        x = self.proj(x)
        h, w = x.shape[2:]
        return self.norm(x.flatten(2).transpose(1, 2)), h, w


class MiT(nn.Module):
    def __init__(self, dims, depths):
        super().__init__()
        for n, (i, dim, depth) in enumerate(zip((3, *dims), dims, depths, strict=False), 1):
            self.add_module(f"patch_embed{n}", Patches(i, dim, PATCHES[n - 1], STRIDES[n - 1]))
            self.add_module(f"block{n}", nn.ModuleList([Block(dim, HEADS[n - 1], RATIOS[n - 1]) for _ in range(depth)]))
            self.add_module(f"norm{n}", nn.LayerNorm(dim, 1e-6))

    def forward(self, x):
        found = []
        for n in range(1, 5):
            y, h, w = getattr(self, f"patch_embed{n}")(x)
            for block in getattr(self, f"block{n}"):
                y = block(y, h, w)
            y = getattr(self, f"norm{n}")(y)
            x = y.transpose(1, 2).reshape(y.shape[0], -1, h, w)
            found.append(x)
        return found


class One(nn.Module):
    """The first block of a stage; x are tokens."""

    def __init__(self, stage, dim, side):
        super().__init__()
        self.side = side
        self.add_module(f"block{stage}", nn.ModuleList([Block(dim, HEADS[stage - 1], RATIOS[stage - 1])]))

    def forward(self, x):
        (blocks,) = self.children()
        return [blocks[0](x, self.side, self.side)]


def prepare(sizes, sets, variant, device):
    whole = "dims" in sizes
    side = sizes["image"] if whole else sizes["image"] >> sizes["stage"] + 1
    net = (MiT(sizes["dims"], sizes["depths"]) if whole else One(sizes["stage"], sizes["width"], side)).to(device)
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    forward = torch.compile(net) if variant == "compiled" else net
    turned = (lambda x: x.permute(0, 3, 1, 2).contiguous()) if whole else (lambda x: x.flatten(1, 2))
    placed = [turned(torch.from_numpy(each["x"]).to(device)) for each in sets]

    def call(n):
        x = placed[n].detach().requires_grad_()
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=sizes["dtype"] == "bfloat16"):
            found = forward(x)
        sum((y.float() ** 3).sum() for y in found).backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in net.parameters()))
        return x.grad / x.grad.abs().max(), norm / (1 + norm)

    def out():
        dx, norm = call(0)
        dx = dx.permute(0, 2, 3, 1) if whole else dx.unflatten(1, (side, side))
        return {"dx": dx.float().cpu().numpy(), "norm": norm.detach().cpu().numpy()}

    return Prepared(call, out, weights)
