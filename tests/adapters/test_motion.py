"""Motion adapters: the equations of their docstrings, and what affects their outputs."""

from __future__ import annotations

import pytest
import torch

from dmgal.adapters.dmgal import CmgaAdapter, SmgaAdapter
from dmgal.adapters.motion import BottleneckShape, Motion, MultiScale, motion_attention

SHAPE = {"width": 12, "bottleneck": 6, "motion_width": 4, "num_frames": 5, "num_prefix_tokens": 1, "grid": (2, 3)}
EVERYTHING = slice(None)


def randomized(module):
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double()


def tokens(videos, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(videos, 5, 7, 12, generator=generator, dtype=torch.float64)


def test_motion_attention_is_the_mean_of_two_softmaxes():
    generator = torch.Generator().manual_seed(0)
    f, g, p, q = (torch.randn(2, 7, 4, generator=generator) for _ in range(4))
    values = torch.randn(2, 7, 3, generator=generator)
    expected = sum(torch.softmax(a @ b.transpose(1, 2) / 2, -1) @ values for a, b in ((f, p), (g, q))) / 2
    torch.testing.assert_close(motion_attention(Motion(f, g), Motion(p, q), values), expected)


@pytest.mark.parametrize("entries", [2 * 7 * 7, 3 * 7, 1], ids=["two maps", "three rows", "not even a row"])
@pytest.mark.parametrize("leading", [(), (5,), (3, 2)])
def test_motion_attention_in_pieces_equals_the_whole(monkeypatch, leading, entries):
    monkeypatch.setattr("dmgal.adapters.motion.MAP_ENTRIES_IN_CACHE", entries)
    generator = torch.Generator().manual_seed(0)
    motion = Motion(*(torch.randn(*leading, 7, 4, generator=generator) for _ in range(2)))
    values = torch.randn(*leading, 7, 3, generator=generator)
    with_gradients = motion_attention(motion, motion, values)
    with torch.no_grad():
        torch.testing.assert_close(motion_attention(motion, motion, values), with_gradients)
        common = Motion(*(direction.flatten(0, -2)[:9] for direction in motion))  # as a Cmga: all queries share them
        torch.testing.assert_close(
            motion_attention(motion, common, values.flatten(0, -2)[:9]),
            torch.enable_grad()(motion_attention)(motion, common, values.flatten(0, -2)[:9]),
        )


def test_motion_is_zero_at_the_ends_and_aligned_between():
    adapter = randomized(SmgaAdapter(BottleneckShape(**SHAPE)))
    hidden = adapter.hidden(tokens(2))
    motion = adapter.motion(hidden)
    here, aligned = adapter.reduce(hidden), adapter.align(adapter.reduce(hidden))
    assert motion.forward[:, -1].eq(0).all() and motion.backward[:, 0].eq(0).all()
    torch.testing.assert_close(motion.forward[:, 1], aligned[:, 2] - here[:, 1])
    torch.testing.assert_close(motion.backward[:, 1], aligned[:, 0] - here[:, 1])


def test_prefix_tokens_pass_the_convolution_unchanged_and_patches_do_not():
    adapter = randomized(SmgaAdapter(BottleneckShape(**SHAPE)))
    hidden = adapter.hidden(tokens(1))
    mixed = adapter.values(hidden)
    assert torch.equal(mixed[:, :, :1], hidden[:, :, :1])
    grid = hidden[0, 0, 1:].T.reshape(1, 6, 2, 3)
    torch.testing.assert_close(mixed[0, 0, 1:].T.reshape(1, 6, 2, 3), adapter.values.convolution(grid))


@pytest.mark.parametrize(
    ("signed", "temporal", "sees"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_signed_values_or_temporal_code_distinguish_reversed_videos(signed, temporal, sees):
    """Without either, a clip and its reversal give the same frames in reverse order."""
    adapter = randomized(SmgaAdapter(BottleneckShape(**SHAPE, signed=signed, temporal=temporal)))
    clip = tokens(1)
    difference = (adapter(clip.flip(1)).flip(1) - adapter(clip)).abs().max()
    assert (difference > 1e-3) if sees else (difference < 1e-12)


def test_queries_depend_on_the_support_and_on_no_other_query():
    adapter = randomized(CmgaAdapter(BottleneckShape(**SHAPE)))
    support, query, other = tokens(3, 1), tokens(2, 2), tokens(2, 3)
    alone = adapter(torch.cat([support, query[:1]]), num_support=3)
    beside = adapter(torch.cat([support, query[:1], other]), num_support=3)
    torch.testing.assert_close(beside[:4], alone)
    moved = adapter(torch.cat([support + 1, query[:1]]), num_support=3)
    assert (moved[3] - alone[3]).abs().max() > 1e-3
    torch.testing.assert_close(adapter(support, num_support=3), alone[:3])


def test_cross_attention_softmax_runs_over_all_support_tokens_of_a_frame():
    shape = BottleneckShape(**SHAPE)
    adapter = randomized(CmgaAdapter(shape))
    support, query = adapter.prepare(tokens(2, 1), EVERYTHING), adapter.prepare(tokens(1, 2), EVERYTHING)
    frame = 3
    values = support["values"][:, frame].reshape(-1, shape.bottleneck)
    cross = torch.zeros(7, shape.bottleneck, dtype=torch.float64)
    for name in ("forward", "backward"):
        keys = support[name][:, frame].reshape(-1, shape.motion_width)
        cross += torch.softmax(query[name][0, frame] @ keys.T / shape.motion_width**0.5, -1) @ values / 2
    expected = query["tokens"][0, frame] + adapter.up(query["hidden"][0, frame] + cross)
    torch.testing.assert_close(adapter.relate(support, query, EVERYTHING)[1][0, frame], expected)


def test_prepare_of_one_row_equals_that_row():
    adapter = randomized(CmgaAdapter(BottleneckShape(**SHAPE)))
    row = slice(0, 1)
    whole = adapter.relate(
        adapter.prepare(tokens(2, 1), EVERYTHING), adapter.prepare(tokens(2, 2), EVERYTHING), EVERYTHING
    )
    part = adapter.relate(adapter.prepare(tokens(2, 1), row), adapter.prepare(tokens(2, 2), row), row)
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[:, :, row], other)


def test_three_scales_are_averaged_on_the_grid_of_patches() -> None:
    shape = BottleneckShape(**SHAPE)
    scales = randomized(MultiScale(4, shape))
    given = torch.randn(2, 5, 7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, maps = scales(given), given[:, :, 1:].flatten(0, 1).unflatten(1, shape.grid).permute(0, 3, 1, 2)

    def normalized(part: torch.Tensor, convolution: torch.nn.Conv2d, norm: torch.nn.GroupNorm) -> torch.Tensor:
        """A 3 x 3 convolution with zeros around the map, and a layer norm over its channels and places."""
        around = torch.nn.functional.pad(part, (1, 1, 1, 1))
        height, width = part.shape[-2:]
        patches = [around[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        weight = convolution.weight.flatten(2)  # (c, c, 9)
        out = sum(torch.einsum("oc,nchw->nohw", weight[:, :, k], patch) for k, patch in enumerate(patches))
        out = out + convolution.bias[:, None, None]
        centered = out - out.mean((1, 2, 3), keepdim=True)
        out = centered / (centered.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return out * norm.weight[:, None, None] + norm.bias[:, None, None]

    halves = torch.stack([maps[..., 0:2].mean((2, 3)), maps[..., 2:3].mean((2, 3))], dim=-1)[:, :, None]  # 2 x 3 cells
    coarse = normalized(halves, scales.coarse, scales.coarse_normalization)[..., [0, 0], :][..., [0, 0, 1]]
    fine = normalized(maps, scales.fine, scales.fine_normalization)
    mean = ((maps + fine + coarse) / 3).flatten(2).transpose(1, 2).unflatten(0, (2, 5))
    torch.testing.assert_close(found[:, :, 1:], scales.mix(mean))
    torch.testing.assert_close(found[:, :, :1], scales.mix(given[:, :, :1]))
