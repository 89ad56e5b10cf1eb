"""D2ST-Adapter: golden outputs of the released code, sampling points, and properties for any weights."""

from __future__ import annotations

import pytest
import torch
from adapter_checks import (
    awaken,
    check_every_parameter_is_read,
    check_identity_at_the_start,
    check_reference_weights_must_fit,
    check_videos_are_apart,
    check_wrong_tokens_are_refused,
    num_parameters,
    random_tokens,
)
from golden_files import assert_relatively_close, read_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from dmgal.adapters.d2st import D2STAdapter, D2STShape, DeformableAttention, SamplingWindow
from dmgal.errors import DmgalError

SMALL = D2STShape(width=12, bottleneck=8, num_frames=4, num_prefix_tokens=1, grid=(4, 5))
PAPER = D2STShape(width=64, bottleneck=16, num_frames=8, num_prefix_tokens=1, grid=(14, 14))


def tokens(videos: int = 2, shape: D2STShape = SMALL) -> torch.Tensor:
    num_tokens = shape.num_prefix_tokens + shape.grid[0] * shape.grid[1]
    return random_tokens(videos, shape.num_frames, num_tokens, shape.width)


def test_adapter_matches_released_code() -> None:
    inputs, weights, info = read_golden("d2st_adapter")
    adapter = D2STAdapter(PAPER).eval()
    assert (PAPER.num_heads, PAPER.num_groups) == (info["heads"], info["groups"])
    adapter.load_reference_state_dict(weights)
    result = adapter(inputs["x"].transpose(0, 1).unflatten(0, (-1, info["frames"])))
    assert_relatively_close(result.flatten(0, 1).transpose(0, 1), inputs["y"])


def test_unfitting_reference_weights_are_refused() -> None:
    check_reference_weights_must_fit(D2STAdapter(PAPER), read_golden("d2st_adapter")[1])


def test_number_of_parameters_on_vit_b16() -> None:
    shape = D2STShape(width=768, bottleneck=192, num_frames=8, num_prefix_tokens=1, grid=(14, 14))
    assert round(12 * num_parameters(D2STAdapter(shape)) / 1e6, 2) == 7.27


def test_initial_adapter_is_the_identity() -> None:
    check_identity_at_the_start(D2STAdapter(SMALL), tokens())


def test_gradients_reach_every_parameter() -> None:
    """The keys' bias is excluded, because it shifts all scores of a query equally. The released code has it."""
    adapter = D2STAdapter(SMALL)
    for path in (adapter.spatial, adapter.temporal):
        path.keys.bias.requires_grad_(False)
        path.keys.bias.grad = torch.ones_like(path.keys.bias)
    check_every_parameter_is_read(adapter, tokens())


def test_videos_are_independent_and_wrong_tokens_are_refused() -> None:
    check_videos_are_apart(D2STAdapter(SMALL), tokens(3))
    check_wrong_tokens_are_refused(D2STAdapter(SMALL), tokens())


class TestWindows:
    def test_default_windows_are_the_papers(self) -> None:
        assert PAPER.windows() == (
            SamplingWindow(kernel=(4, 5, 5), stride=(4, 3, 3)),
            SamplingWindow(kernel=(1, 7, 7), stride=(1, 7, 7)),
        )
        assert [window.points((8, 14, 14)) for window in PAPER.windows()] == [(2, 4, 4), (8, 2, 2)]

    @given(frames=st.integers(1, 8), rows=st.integers(1, 14), columns=st.integers(1, 14))
    def test_smaller_volumes_keep_the_number_of_points_and_are_covered(
        self, frames: int, rows: int, columns: int
    ) -> None:
        size = (frames, rows, columns)
        spatial, temporal = D2STShape(12, 8, frames, 1, (rows, columns)).windows()
        assert spatial.points(size) == (min(2, frames), min(4, rows), min(4, columns))
        assert temporal.points(size) == (frames, min(2, rows), min(2, columns))
        for window in (spatial, temporal):
            points = zip(size, window.points(size), window.kernel, window.stride, strict=True)
            assert all((number - 1) * stride + kernel == length for length, number, kernel, stride in points)

    def test_larger_volumes_have_the_papers_windows(self) -> None:
        assert D2STShape(12, 8, 16, 1, (16, 24)).windows() == PAPER.windows()

    def test_explicit_window_is_used(self) -> None:
        window = SamplingWindow(kernel=(2, 2, 2), stride=(1, 1, 1))
        shape = D2STShape(12, 8, 4, 1, (4, 5), spatial_window=window)
        assert shape.windows() == (window, SMALL.windows()[1])
        assert D2STAdapter(shape).spatial.points(torch.zeros(1, 4, 21, 8)).shape == (1, 3 * 3 * 4, 4, 3)

    def test_window_larger_than_the_volume_is_refused(self) -> None:
        window = SamplingWindow(kernel=(1, 7, 7), stride=(1, 7, 7))
        with pytest.raises(DmgalError, match="4 frames of 4 x 5 patches"):
            D2STShape(12, 8, 4, 1, (4, 5), temporal_window=window)

    def test_too_few_frames_for_the_window_are_refused(self) -> None:
        with pytest.raises(DmgalError, match="1 frames of 4 x 5 patches"):
            D2STAdapter(SMALL)(tokens()[:, :1])

    @pytest.mark.parametrize(("kernel", "stride"), [((0, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 0, 1)), ((1, 1), (1, 1))])
    def test_invalid_window_is_refused(self, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        with pytest.raises(DmgalError, match="kernel"):
            SamplingWindow(kernel, stride)


@given(
    frames=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    num_prefix_tokens=st.integers(0, 3),
    videos=st.integers(1, 3),
)
@settings(max_examples=20)
def test_adapter_accepts_any_volume(frames: int, grid: tuple[int, int], num_prefix_tokens: int, videos: int) -> None:
    shape = D2STShape(12, 8, frames, num_prefix_tokens, grid, num_heads=2)
    result = awaken(D2STAdapter(shape))(tokens(videos, shape))
    assert result.shape == tokens(videos, shape).shape and result.isfinite().all()


@pytest.mark.parametrize("numbers", [{"num_heads": 3}, {"num_groups": 3}])
def test_indivisible_bottleneck_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(DmgalError, match="bottleneck=8"):
        D2STShape(12, 8, 4, 1, (4, 5), **numbers)


class TestPoints:
    def attention(self) -> DeformableAttention:
        torch.manual_seed(0)
        return awaken(DeformableAttention(8, 4, 4, 1, (14, 14), PAPER.windows()[0]))

    def queries(self, seed: int = 0) -> torch.Tensor:
        return random_tokens(2, 8, 197, 8, seed)

    def test_points_without_offsets_are_centers_of_equal_cells(self) -> None:
        attention = self.attention()
        torch.nn.init.zeros_(attention.offset.weight)
        points = attention.points(self.queries())
        assert points.shape == (2, 2 * 4 * 4, 4, 3)
        time, height, width = points[1, :, 2].unflatten(0, (2, 4, 4)).unbind(-1)
        cells = torch.tensor([-0.75, -0.25, 0.25, 0.75])
        torch.testing.assert_close(time[:, 0, 0], torch.tensor([-0.5, 0.5]))
        torch.testing.assert_close(height[0, :, 3], cells)
        torch.testing.assert_close(width[1, 2], cells)

    def test_points_move_by_at_most_two_over_their_number(self) -> None:
        attention = self.attention()
        with torch.no_grad():
            attention.offset.weight.mul_(100)
        moved = attention.points(self.queries())
        torch.nn.init.zeros_(attention.offset.weight)
        offsets = (moved - attention.points(self.queries())).abs().flatten(0, 2).amax(0)
        reach = torch.tensor([1.0, 0.5, 0.5])
        assert (offsets <= reach + 1e-6).all() and (offsets > 0.99 * reach).all()

    def test_points_depend_on_the_patch_queries_of_their_group(self) -> None:
        attention, queries = self.attention(), self.queries()
        moved = queries.clone()
        moved[:, :, 0] += torch.randn(8, generator=torch.Generator().manual_seed(1))  # the prefix token has no effect
        torch.testing.assert_close(attention.points(moved), attention.points(queries))
        moved[:, :, 1:, 2:4] = self.queries(1)[:, :, 1:, 2:4]  # the second of four groups
        changed = (attention.points(moved) - attention.points(queries)).abs().amax((0, 1, 3)).gt(1e-4)
        assert changed.tolist() == [False, True, False, False]

    def test_sampling_interpolates_between_patches(self) -> None:
        attention, inputs = self.attention(), self.queries()
        place = lambda index, length: 2 * index / (length - 1) - 1  # noqa: E731
        patch = torch.tensor([place(5, 8), place(3, 14), place(11, 14)])
        between = torch.tensor([place(5, 8), place(3, 14), place(11.5, 14)])
        points = torch.stack([patch, between])[None, :, None].expand(2, 2, 4, 3)
        sampled = attention.sample(inputs, points)
        row = inputs[:, 5, 1 + 3 * 14 + 11]
        torch.testing.assert_close(sampled[:, 0], row)
        torch.testing.assert_close(sampled[:, 1], (row + inputs[:, 5, 1 + 3 * 14 + 12]) / 2)

    def test_each_group_reads_its_own_channels_at_its_own_points(self) -> None:
        attention, inputs = self.attention(), self.queries()
        corners = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [-1, 1, -1], [1, -1, 1]])
        sampled = attention.sample(inputs, corners.expand(2, 1, 4, 3))[:, 0]
        rows = [(0, 1), (7, 196), (0, 1 + 13 * 14), (7, 14)]
        expected = torch.cat([inputs[:, t, n, 2 * g : 2 * g + 2] for g, (t, n) in enumerate(rows)], dim=1)
        torch.testing.assert_close(sampled, expected)

    def test_prefix_tokens_are_queries_but_not_sampled(self) -> None:
        attention, inputs = self.attention(), self.queries()
        moved = inputs.clone()
        moved[:, :, 0] += torch.randn(8, generator=torch.Generator().manual_seed(1))
        difference = (attention(moved) - attention(inputs)).abs()
        assert difference[:, :, 0].max() > 1e-3 and difference[:, :, 1:].max() < 1e-5


def test_attention_computes_the_published_equation() -> None:
    """Attention of every token to the keys and values of the points, written out for one head."""
    adapter, inputs = awaken(D2STAdapter(SMALL)), random_tokens(2, 4, 21, 8)
    for path in (adapter.spatial, adapter.temporal):
        queries = path.queries(inputs)
        sampled = path.sample(inputs, path.points(queries))
        head = slice(2, 4)
        weights = torch.softmax(
            queries.flatten(1, 2)[..., head] @ path.keys(sampled)[..., head].transpose(1, 2) / 2**0.5, dim=-1
        )
        attended = weights @ path.values(sampled)[..., head]
        gathered = []
        handle = path.mixed.register_forward_pre_hook(lambda module, args, into=gathered: into.append(args[0]))
        path(inputs)
        handle.remove()
        torch.testing.assert_close(gathered[0].flatten(1, 2)[..., head], attended)
