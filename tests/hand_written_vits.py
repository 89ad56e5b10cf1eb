"""Hand-written vision transformers that use no library but torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class HandWrittenViT(nn.Module):
    """A ViT with tokens ``(B, N, C)``, a class token, the norm before the pooling, and no image size attribute."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class TokensFirstBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.before_attention(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.before_mlp(x))


class TokensFirstViT(nn.Module):
    """A ViT with tokens ``(N, B, C)``, a class and two register tokens, a Sequential of blocks, and a projection."""

    def __init__(self, img_size: int, patch: int, width: int, depth: int, heads: int, features: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.prefix = nn.Parameter(torch.zeros(3, 1, width))
        self.position = nn.Parameter(torch.zeros((img_size // patch) ** 2, 1, width))
        self.transformer = nn.Sequential(*(TokensFirstBlock(width, heads) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, features, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).permute(2, 0, 1) + self.position
        x = self.transformer(torch.cat([self.prefix.expand(-1, len(images), -1), x]))
        return self.projection(self.final_norm(x[0]))


class WideViT(nn.Module):
    """A ViT with wide images, patches without a convolution, no prefix token, and the mean before the norm."""

    def __init__(self, image_size: tuple[int, int], patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.image_size, self.patch = image_size, patch
        self.embed = nn.Linear(3 * patch * patch, width)
        self.position = nn.Parameter(torch.zeros(image_size[0] * image_size[1] // patch**2, width))
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        x = self.embed(patches) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.norm(x.mean(1))
