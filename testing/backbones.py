"""Contract of a backbone: its spec describes it, and ``FrameEncoder`` computes the features of its own ``forward``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from einops import rearrange
from torch import Tensor, nn

from ..backbones import BackboneSpec, BlockParts, FrameEncoder, find_spec
from ..backbones.encoder import POOLINGS, Pooling

TOLERANCE = 1e-5
"""Tolerance for features computed in batches of other sizes, relative to the largest feature."""


def image_features(model: nn.Module, images: Tensor, **layout: int) -> Tensor:
    """Return a model's own image features from the output of its ``forward``: a tensor, or a transformers output."""
    output: Tensor = model(images, **layout)
    for name in ("image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output


def assert_close(features: Tensor, expected: Tensor) -> None:
    """Compare up to ``TOLERANCE``."""
    torch.testing.assert_close(features, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item()))


@dataclass(frozen=True)
class BackboneCase:
    """A backbone.

    Args:
        make_backbone: returns a new frozen backbone in evaluation mode, with the same weights at each call.
        videos: ``(V, T, 3, H, W)`` of the backbone's image size, at least two, normalized.
        features: returns the model's own features of images.
    """

    make_backbone: Callable[[], nn.Module]
    videos: Tensor
    features: Callable[..., Tensor] = image_features

    def answer(self, model: nn.Module) -> Tensor:
        """Return the model's own features of the videos' frames or steps, ``(V, T, D)``."""
        features = self.features(model, rearrange(self.videos, "v t c h w -> (v t) c h w"))
        return rearrange(features, "(v t) d -> v t d", v=len(self.videos))


def encode(model: nn.Module, videos: Tensor, pooling: Pooling | None = None) -> Tensor:
    """Return the features of the encoder around a model."""
    return FrameEncoder(model, pooling).encode(videos)["features"]


@torch.no_grad()
def check_features_are_those_of_the_model_bit_for_bit(case: BackboneCase) -> None:
    """Check float32, bfloat16, and a deep copy with other weights."""
    model = case.make_backbone()
    expected = case.answer(model)
    assert torch.equal(encode(model, case.videos), expected)
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.mul_(1.5)
    assert torch.equal(encode(twin, case.videos), case.answer(twin))
    assert torch.equal(encode(model, case.videos), expected), "the copy shares weights with the model"
    half = BackboneCase(case.make_backbone, case.videos.bfloat16(), case.features)
    assert torch.equal(encode(model.bfloat16(), half.videos), half.answer(model))


@torch.no_grad()
def check_poolings_are_consistent(case: BackboneCase) -> None:
    """Check shapes, the mean of the map, and the pair of features."""
    model = case.make_backbone()
    spec = find_spec(model)
    own, mean, pair, maps = (encode(model, case.videos, pooling) for pooling in POOLINGS)
    count, steps = len(case.videos), spec.num_steps(case.videos.shape[1])
    assert own.shape[:2] == (count, steps)
    assert maps.shape == (count, steps, spec.width, *spec.grid)
    assert torch.equal(pair, torch.cat([own, mean], dim=-1))
    images = rearrange(maps.mean((-2, -1)), "v t c -> (v t) c")
    assert_close(spec.project(model, images), rearrange(mean, "v t d -> (v t) d"))
    widths = [FrameEncoder(model, pooling).feature_width for pooling in POOLINGS]
    assert widths == [features.shape[2] for features in (own, mean, pair, maps)]


@torch.no_grad()
def check_videos_are_encoded_alone_or_together(case: BackboneCase) -> None:
    """Check that the features of a video do not depend on its batch."""
    model = case.make_backbone()
    alone = torch.cat([encode(model, video[None]) for video in case.videos])
    assert_close(alone, encode(model, case.videos))


@torch.no_grad()
def check_uint8_videos_are_normalized(case: BackboneCase) -> None:
    """Check that uint8 videos have the features of the same videos after ``(video / 255 - mean) / std``."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, case.videos.shape, dtype=torch.uint8, generator=generator)
    model = case.make_backbone()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (find_spec(model).mean, find_spec(model).std))
    assert_close(encode(model, clips), encode(model, (clips / 255 - mean) / std))


@torch.no_grad()
def check_maps_keep_patch_positions(case: BackboneCase) -> None:
    """Check prefix tokens and grid: a change of one patch changes the feature at its position most.

    The last maps of a backbone in stages depend on all pixels, so its first maps are compared.
    """
    model = case.make_backbone()
    spec = find_spec(model)
    rows, columns = spec.entry.grid
    height, width = case.videos.shape[3] // rows, case.videos.shape[4] // columns
    image = case.videos[:1, : spec.clip_frames or 1]
    for row, column in ((0, columns - 1), (rows // 2, 1 % columns)):
        changed = image.clone()
        changed[..., height * row : height * (row + 1), width * column : width * (column + 1)] += 3
        difference = (patches(model, spec, changed) - patches(model, spec, image)).norm(dim=-1)[0]
        most_row, most_column = divmod(int(difference.argmax()), columns)
        assert max(abs(most_row - row), abs(most_column - column)) <= bool(spec.sides)  # their patches may overlap


def patches(model: nn.Module, spec: BackboneSpec, videos: Tensor) -> Tensor:
    """Return the patches ``(B, N, C)`` after the last block, or before the first one of a backbone in stages."""
    if spec.sides:
        return spec.stem(model, rearrange(videos, "v t c h w -> (v t) c h w"))[:, spec.num_prefix_tokens :]
    return rearrange(encode(model, videos, "map"), "v t c h w -> (v t) (h w) c")


@torch.no_grad()
def check_spec_describes_blocks_and_tokens(case: BackboneCase) -> None:
    """Check the paths of all blocks, and the number and width of their tokens."""
    model = case.make_backbone()
    spec = find_spec(model)
    blocks = [model.get_submodule(name) for name in spec.block_names()]
    assert len(blocks) == spec.num_blocks
    assert spec.sides or blocks == list(model.get_submodule(spec.blocks).children())
    assert spec.image_size == case.videos.shape[-2:]
    assert all(isinstance(module, nn.Module) for module in spec.modules_above_blocks(model))
    entry = spec.entry
    num_tokens = entry.num_prefix_tokens + entry.grid[0] * entry.grid[1]
    steps = spec.num_steps(case.videos.shape[1])
    assert spec.stem(model, case.videos[0]).shape == (steps, num_tokens, entry.width)


@torch.no_grad()
def check_parts_of_blocks_run_in_order(case: BackboneCase) -> None:
    """Check the named parts, and that ``attend`` maps the output of the attention's norm to that of the attention."""
    model = case.make_backbone()
    spec = find_spec(model)
    assert spec.attend is None or not spec.rotary
    names = [field.name for field in fields(BlockParts) if getattr(spec.parts, field.name, None)]
    block = model.get_submodule(spec.block_names()[1])
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: outputs.update({name: output[0] if type(output) is tuple else output})

    parts = [block.get_submodule(getattr(spec.parts, name)) for name in names]
    handles = [part.register_forward_hook(record(name)) for name, part in zip(names, parts, strict=True)]
    case.answer(model)
    for handle in handles:
        handle.remove()
    assert list(outputs) == names
    assert len({tuple(output.shape) for output in outputs.values()}) <= 1
    if spec.attend is not None and {"attention_norm", "attention"} <= outputs.keys():
        normed = outputs["attention_norm"]
        assert torch.equal(spec.attend(block, normed), outputs["attention"])
        five_tokens = normed[:5, :5]  # another number of tokens, as in AIM's attention over frames
        assert spec.attend(block, five_tokens).shape == five_tokens.shape


def check_finding_the_spec_leaves_the_model_unchanged(case: BackboneCase) -> None:
    """Check modules, modes, weights, hooks and the random state, and that the spec is found only once."""
    model = case.make_backbone().train()
    next(model.children()).eval()
    modes = {name: (type(module), module.training) for name, module in model.named_modules()}
    weights = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    find_spec(model)
    assert {name: (type(module), module.training) for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def check_fingerprint_depends_on_weights(case: BackboneCase) -> None:
    """Check that equal models have equal fingerprints, and that another scale of the patch embedding changes all."""
    model = case.make_backbone()
    spec = find_spec(model)
    fingerprint = spec.fingerprint(model) or []
    assert len(fingerprint) == 4 and fingerprint == spec.fingerprint(case.make_backbone())
    model.get_parameter(f"{spec.patch_embedding}.weight").data *= 1.1
    scaled = spec.fingerprint(model) or []
    assert all(now > 1.05 * before for now, before in zip(scaled, fingerprint, strict=True))


BACKBONE_CHECKS: tuple[Callable[[BackboneCase], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)
"""All checks of this module, in its order."""
