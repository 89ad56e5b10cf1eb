"""MoLo: all numbers of the released code, the reconstruction, and how it comes by the frames."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmgal.adapters import DmgalConfig
from dmgal.backbones import FrameEncoder, VideoState, load_backbone
from dmgal.episodes import Episode, FewShotRecognizer, TaskTargets
from dmgal.episodes.heads import MoLo
from dmgal.episodes.heads.molo import FRAME_STD, MotionDecoder, frame_differences
from dmgal.errors import DmgalError

FRAMES = 4


def maps(videos: int, frames: int = FRAMES, channels: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(videos, frames, channels, 1, 2, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden(read_golden) -> tuple[MoLo, dict[str, Tensor], VideoState, VideoState]:
    tensors, weights, info = read_golden("molo_head")
    channels = weights["class_token"].shape[-1]
    head = MoLo(channels, 7, info["heads"], info["mlp_dim"], info["reduction"], info["motion_logit_weight"]).eval()
    head.load_reference_state_dict(weights)
    states = []
    for name in ("support", "query"):
        frames = functional.interpolate(tensors[f"{name}_frames_28px"], scale_factor=8, mode="nearest")
        features, frames = (part.unflatten(0, (-1, FRAMES)) for part in (tensors[f"{name}_features"], frames))
        states.append(head.prepare(features, frames))
    return head, tensors, *states


class TestGolden:
    def test_logits(self, golden, assert_relatively_close) -> None:
        head, tensors, support, query = golden
        assert_relatively_close(head.compare(support, tensors["labels"], query).logits, tensors["logits"])

    def test_long_short(self, golden, assert_relatively_close) -> None:
        head, tensors, support, query = golden
        ours = head.long_short_logits(support, tensors["labels"], query)
        theirs = {"query_to_class": "query_local_to_support_global", "class_to_query": "support_local_to_query_global"}
        assert len(ours) == 4
        for name, logits in ours.items():
            direction, motion, _ = name.partition("_motion")
            assert_relatively_close(logits, tensors[f"logits_{theirs[direction]}{motion}"])

    def test_base_classes_and_reconstruction(self, golden, assert_relatively_close) -> None:
        head, tensors, support, query = golden
        together = VideoState.cat([support, query])
        assert_relatively_close(head.base_class_logits(together), tensors["base_class_logits"])
        assert_relatively_close(together["reconstruction"].mean(), tensors["reconstruction_loss"])

    def test_losses(self, golden, assert_relatively_close) -> None:
        head, tensors, support, query = golden
        answers = torch.tensor([0, 1, 0])
        targets = TaskTargets(answers, tensors["labels"] + 3, answers + 3)
        losses = head.compare(support, tensors["labels"], query, targets).losses
        assert set(losses) == set(head.loss_weights)
        assert_relatively_close(losses["reconstruction"], tensors["reconstruction_loss"])
        classes = torch.cat((targets.support_classes, targets.query_classes))
        assert_relatively_close(losses["base_classes"], functional.cross_entropy(tensors["base_class_logits"], classes))
        four = [tensor for name, tensor in tensors.items() if name.startswith("logits_")]
        assert len(four) == 4
        expected = sum(functional.cross_entropy(logits, answers) for logits in four)
        assert_relatively_close(losses["long_short"], expected)


class TestReconstruction:
    def test_uint8_and_normalized_frames_give_equal_differences(self) -> None:
        frames = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
        normalized = (frames / 255 - 0.45) / FRAME_STD
        torch.testing.assert_close(frame_differences(frames), frame_differences(normalized))
        assert frame_differences(frames).shape == (2, 2, 3, 8, 8)

    def test_error_of_a_video_does_not_depend_on_the_batch(self) -> None:
        head, features, frames = MoLo(16).eval(), maps(3), torch.randn(3, FRAMES, 3, 16, 32)
        together = head.prepare(features, frames)["reconstruction"]
        assert together.shape == (3,) and together.unique().numel() == 3
        alone = [head.prepare(features[i : i + 1], frames[i : i + 1])["reconstruction"] for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone))

    @pytest.mark.parametrize("size", [(32, 64), (21, 50), (224, 224), (1, 1)])
    def test_frames_of_any_size_are_reconstructed(self, size: tuple[int, int]) -> None:
        error = MoLo(16).eval().prepare(maps(1), torch.zeros(1, FRAMES, 3, *size))["reconstruction"]
        assert error.shape == (1,) and (error > 0).all()

    def test_stages_have_the_sizes_of_the_paper(self) -> None:
        decoder, sizes = MotionDecoder(4).eval(), []
        for stage in decoder.stages:
            stage.register_forward_hook(lambda *call: sizes.append(tuple(call[2].shape)))
        assert decoder(torch.zeros(1, 4, 7, 7), (224, 224)).shape == (1, 3, 224, 224)
        assert sizes == [(1, 128, 14, 14), (1, 32, 56, 56), (1, 16, 224, 224)]

    def test_loss_requires_frames_and_targets(self) -> None:
        head, labels = MoLo(16).eval(), torch.tensor([0, 1])
        targets = TaskTargets(labels)
        plain, drawn = head.prepare(maps(2)), head.prepare(maps(2), torch.zeros(2, FRAMES, 3, 8, 8))
        assert "reconstruction" not in plain
        assert set(head.compare(plain, labels, plain, targets).losses) == {"long_short"}
        assert set(head.compare(drawn, labels, drawn, targets).losses) == {"long_short", "reconstruction"}
        assert not head.compare(drawn, labels, drawn).losses


class TestRecognizer:
    """The head gets the videos in training only, with and without a task layer in front of it."""

    @staticmethod
    def episode() -> Episode:
        generator = torch.Generator().manual_seed(0)
        videos = torch.randint(0, 256, (3, 2, 3, 48, 48), dtype=torch.uint8, generator=generator)
        labels = torch.tensor([0, 1])
        return Episode(videos[:2], labels, videos[2:], labels[:1], ("a", "b"), classes=torch.tensor([4, 2]))

    @pytest.mark.parametrize("task_layer", [False, True])
    def test_frames_reach_the_head(self, task_layer: bool) -> None:
        torch.manual_seed(0)
        backbone = load_backbone("tiny-clip")
        if task_layer:
            backbone = peft.get_peft_model(backbone, DmgalConfig(num_frames=2))
        recognizer = FewShotRecognizer(FrameEncoder(backbone, "map"), MoLo(96, num_base_classes=5))
        losses = recognizer.train()(self.episode()).losses
        assert set(losses) == {"long_short", "base_classes", "reconstruction"}
        losses["reconstruction"].backward()
        assert recognizer.head.decoder.to_rgb.weight.grad.abs().sum() > 0
        with torch.no_grad():
            state = recognizer.eval().encode(self.episode().support)
            assert "reconstruction" not in state
            assert not any(tensor.shape[2:] == (3, 48, 48) for tensor in state.values())
            assert not recognizer(self.episode()).losses


def test_dropout_is_the_same_for_all_videos() -> None:
    tokens = MoLo(16).frames.train()
    tokens.attention.eval()
    video = torch.randn(1, FRAMES, 16)
    first, second = tokens(video.expand(2, -1, -1))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(tokens(video), tokens(video))


@pytest.mark.parametrize("frames", [2, 3, 16])
def test_numbers_of_frames_may_differ(frames: int) -> None:
    head, labels = MoLo(16).eval(), torch.tensor([0, 1, 1])
    logits = head.compare(head.prepare(maps(3, frames)), labels, head.prepare(maps(2, frames, seed=1))).logits
    assert logits.shape == (2, 2) and logits.isfinite().all()


def test_released_weights_load_without_a_base_classifier(read_golden) -> None:
    _, weights, _ = read_golden("molo_head")
    head = MoLo(32, num_heads=4, mlp_width=96)
    head.load_reference_state_dict(weights)
    assert torch.equal(head.motion.scale, weights["scale_motion"])


class TestMistakes:
    def test_single_frame_raises(self) -> None:
        with pytest.raises(DmgalError, match="two frames"):
            MoLo(16).prepare(maps(2, frames=1))

    def test_motion_without_channels_raises(self) -> None:
        with pytest.raises(DmgalError, match="reduction=17"):
            MoLo(16, reduction=17)
