"""Two-pass training gives the gradients of training on all videos at once, in less memory, for any trained part."""

from __future__ import annotations

import sys
from pathlib import Path

import forked
import peft
import pytest
import torch
import torch.nn.functional as F
from adapter_cases import ADAPTER_CASES
from torch import nn
from two_pass_cases import (
    FEATURE_HEADS,
    MAP_HEADS,
    backbone,
    mixing_head,
    of_adapter,
    of_feature_head,
    of_map_head,
    of_resnet,
    recognizer,
    task,
)

from dmgal.adapters import DmgalConfig
from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.episodes import Episode, FewShotRecognizer
from dmgal.episodes.heads import BiMHM, DmgalFT
from dmgal.episodes.two_pass.memory import LiveBytes
from dmgal.episodes.two_pass.two_pass import TwoPass
from dmgal.errors import DmgalError

CASES = {
    **{f"adapter {name}": lambda name=name: of_adapter(name) for name in ADAPTER_CASES},
    **{f"{name}, all trained": lambda name=name: of_map_head(name, None) for name in MAP_HEADS},
    **{f"{name} behind a Cmga": lambda name=name: of_map_head(name, "DMGAL") for name in MAP_HEADS},
    **{f"{name} behind Smga": lambda name=name: of_feature_head(name) for name in FEATURE_HEADS},
    "prepares with weights": lambda: mixing_head("Smga"),
    "prepares with weights behind a Cmga": lambda: mixing_head("Cmga two before the end"),
    "DmgalFT on a ResNet": of_resnet,
    "blocks checkpointed": lambda: recognizer(
        FrameEncoder(backbone("DMGAL"), checkpoint_blocks=True), FEATURE_HEADS["BiMHM"]()
    ),
    "only the head is trained": lambda: recognizer(FrameEncoder(backbone()), FEATURE_HEADS["BiMHM"]()),
}


def loss_of(output, episode):
    """Sum all losses, including auxiliary ones."""
    return F.cross_entropy(output.logits, episode.query_labels) + sum(output.losses.values())


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plainly(model, episodes, seed=5):
    """Return gradients and outputs of training on all videos at once, and the random state afterwards."""
    model.zero_grad()
    torch.manual_seed(seed)
    outputs = model(episodes)
    torch.stack([loss_of(output, episode) for output, episode in zip(outputs, episodes, strict=True)]).mean().backward()
    return gradients(model), outputs, torch.get_rng_state()


def in_two_passes(model, episodes, chunk=3, seed=5, **options):
    model.zero_grad()
    torch.manual_seed(seed)
    outputs = TwoPass(model, chunk, **options).backward(episodes, loss_of)
    return gradients(model), outputs, torch.get_rng_state()


def assert_same_gradients(found, expected, tolerance):
    assert found.keys() == expected.keys() and found
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance * largest, msg=name)


@pytest.mark.parametrize("name", list(CASES))
def test_gradients_equal_training_on_all_videos(name):
    """Two tasks of seven videos, chunks of up to three, float64, with dropout, auxiliary losses and targets."""
    model, episodes = CASES[name](), [task(0), task(1)]
    expected, outputs, state = plainly(model, episodes)
    found, ours, our_state = in_two_passes(model, episodes)
    assert_same_gradients(found, expected, 1e-10)
    assert torch.equal(our_state, state)
    for one, other in zip(ours, outputs, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-8)
        assert one.losses.keys() == other.losses.keys()
        assert not one.logits.requires_grad and not any(loss.requires_grad for loss in one.losses.values())


@pytest.mark.parametrize("name", ["adapter DMGAL", "MoLo, all trained", "DmgalFT on a ResNet"])
def test_gradients_without_saved_results(name):
    model, episodes = CASES[name](), [task(0)]
    assert_same_gradients(in_two_passes(model, episodes, keep_products=False)[0], plainly(model, episodes)[0], 1e-10)


def test_cases_include_auxiliary_losses():
    losses = {name: set(plainly(CASES[name](), [task(0)])[1][0].losses) for name in CASES if name.startswith("MoLo")}
    assert len(losses) == 2
    assert all(found == {"long_short", "base_classes", "reconstruction"} for found in losses.values())


@pytest.mark.parametrize("adapter", ["DMGAL", "Cmga two before the end", None])
@pytest.mark.parametrize("chunk", [1, 3, 99])
def test_float32_is_within_1e_5(adapter, chunk):
    encoder = FrameEncoder(backbone(adapter, trainable=adapter is None), None)
    model = recognizer(encoder, BiMHM(center="video", logit_scale=10.0), torch.float32)
    episodes = [task(0, torch.float32)]
    assert_same_gradients(in_two_passes(model, episodes, chunk)[0], plainly(model, episodes)[0], 1e-5)


def test_gradients_accumulate_over_calls():
    model = of_adapter("DMGAL")
    expected = plainly(model, [task(0), task(1)])[0]
    model.zero_grad()
    two_pass = TwoPass(model, 3)
    for seed in (0, 1):
        torch.manual_seed(5)
        two_pass.backward([task(seed)], loss_of, scale=lambda loss: loss / 2)
    assert_same_gradients(gradients(model), expected, 1e-10)


class Foreign(BiMHM):
    """A head with a dropout that is independent between videos, as in other libraries."""

    def __init__(self):
        super().__init__(center="video", logit_scale=10.0)
        self.weight, self.dropout = nn.Parameter(torch.ones(())), nn.Dropout(0.5)

    def prepare(self, features):
        return super().prepare(self.dropout(features) * self.weight)


def test_foreign_dropout_is_the_same_in_both_passes():
    """All chunks start from the same random state. The expected result uses one graph for all of them."""
    model, episode = recognizer(FrameEncoder(backbone("Smga")), Foreign()), task(0)
    found, outputs, _ = in_two_passes(model, [episode], 4)
    model.zero_grad()
    torch.manual_seed(5)
    start, states = torch.get_rng_state(), []
    for part in torch.cat([episode.support, episode.query]).split(4):
        torch.set_rng_state(start)
        states.append(model.encode(part))
    support, query = type(states[0]).cat(states).split([4, 3])
    output = model.compare(support, episode.support_labels, query)
    loss_of(output, episode).backward()
    assert_same_gradients(found, gradients(model), 1e-10)
    assert torch.equal(outputs[0].logits, output.logits.detach())
    other = in_two_passes(model, [episode], 4, seed=6)[0]
    assert not torch.allclose(other["head.weight"], found["head.weight"])


@pytest.mark.parametrize("nested", [False, True])
def test_mixed_precision(nested):
    """Close to plain bf16, whose own rounding is coarser than 1e-5, also inside the caller's autocast."""
    model = recognizer(FrameEncoder(backbone("DMGAL")), FEATURE_HEADS["BiMHM"](), torch.float32)
    episodes = [task(0, torch.float32)]

    def region(enabled=True):
        return torch.autocast("cpu", torch.bfloat16, enabled=enabled)

    with region():
        outputs = model(episodes)
    loss_of(outputs[0], episodes[0]).backward()
    expected = gradients(model)
    exact = plainly(model, episodes)[0]
    with region(nested):
        found, ours, _ = in_two_passes(model, episodes, 3, autocast=region)
    assert ours[0].logits.dtype == torch.float32
    torch.testing.assert_close(ours[0].logits, outputs[0].logits, rtol=0, atol=0.02)
    assert found.keys() == expected.keys()
    flat, flat_expected, flat_exact = (
        torch.cat([g.flatten() for g in all.values()]) for all in (found, expected, exact)
    )
    rounding = (flat_expected - flat_exact).norm()
    assert 0 < (flat - flat_expected).norm() < 2 * rounding < flat_exact.norm()


def test_a_scaled_loss_scales_the_gradients():
    model, episodes = of_adapter("DMGAL"), [task(0), task(1)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model.zero_grad()
    torch.manual_seed(5)
    TwoPass(model, 3).backward(episodes, loss_of, scaler.scale)
    scaled = gradients(model)
    expected = plainly(model, episodes)[0]
    assert_same_gradients({name: gradient / 8 for name, gradient in scaled.items()}, expected, 1e-10)


def test_batch_norm_in_training_mode_raises():
    model = of_resnet()
    model.head.train()
    with pytest.raises(DmgalError, match="statistics: those of a chunk are not those of the batch") as refused:
        in_two_passes(model, [task(0)])
    assert "batch norms in training mode" in str(refused.value) and "freeze-batch-norm" in str(refused.value)
    behind = recognizer(FrameEncoder(backbone("DMGAL"), "map"), DmgalFT(32, 4)).train()
    expected = plainly(behind, [task(0)])[0]  # after a task layer, the head sees the same videos in both ways
    assert_same_gradients(in_two_passes(behind, [task(0)])[0], expected, 1e-10)


def test_nothing_to_train_raises():
    model = of_adapter("Smga").requires_grad_(False)
    with pytest.raises(DmgalError, match="nothing to train"):
        in_two_passes(model, [task(0)])


@pytest.mark.parametrize("options", [{"chunk": 0}, {"memory_budget": -1.0}])
def test_invalid_options_raise(options):
    with pytest.raises(DmgalError, match="of two-pass training is too small"):
        TwoPass(of_adapter("Smga"), **options)


def allocator_error():
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        pytest.param(MemoryError(), marks=pytest.mark.slow),
        pytest.param(allocator_error(), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_out_of_memory_reduces_the_chunk(monkeypatch, caplog, error, when):
    model, episodes = of_adapter("DMGAL"), [task(0)]
    expected = plainly(model, episodes)[0]
    encode = model.encoder.encode

    def small_memory(videos, **options):
        in_backward = torch._C._current_graph_task_id() != -1
        if len(videos) > 2 and in_backward == (when == "backward"):
            raise error
        return encode(videos, **options)

    monkeypatch.setattr(model.encoder, "encode", small_memory)
    model.zero_grad()
    torch.manual_seed(5)
    two_pass = TwoPass(model, 4)
    two_pass.backward(episodes, loss_of)
    assert "out of memory with 4 videos at once, continuing with 2" in caplog.text
    assert two_pass.planner.plan.chunk == 2
    assert_same_gradients(gradients(model), expected, 1e-10)
    torch.manual_seed(5)
    two_pass.backward(episodes, loss_of)  # keeps the smaller chunk


def test_out_of_memory_with_one_video_drops_saved_results(monkeypatch):
    model, messages, failed = of_adapter("DMGAL"), [], []
    expected, encode = plainly(model, [task(0)])[0], model.encoder.encode
    two_pass = TwoPass(model, 1, memory_budget=1e12, notify=messages.append)
    two_pass.plan(task(0))

    def too_small_once(videos, **options):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(videos, **options)

    monkeypatch.setattr(model.encoder, "encode", too_small_once)
    model.zero_grad()
    torch.manual_seed(5)
    two_pass.backward([task(0)], loss_of)
    assert "continuing without saved results" in messages[1] and not two_pass.planner.plan.positions
    assert_same_gradients(gradients(model), expected, 1e-10)


def test_out_of_memory_without_saved_results_raises(monkeypatch):
    model = of_adapter("Smga")

    def no_memory(videos):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(model.encoder, "encode", no_memory)
    messages = []
    with pytest.raises(DmgalError, match=r"even with one video encoded at a time.*\n.*7 videos.*Tried to allocate"):
        in_two_passes(model, [task(0)], 3, notify=messages.append)
    assert len(messages) == 1 and gradients(model) == {}


def test_other_errors_propagate(monkeypatch):
    model = of_adapter("Smga")
    monkeypatch.setattr(model.encoder, "encode", lambda videos: videos @ torch.ones(3))
    with pytest.raises(RuntimeError, match=r"mat|size"):
        in_two_passes(model, [task(0)])


class InPlace(BiMHM):
    """A head that changes the result of a narrowing product in place."""

    def __init__(self):
        super().__init__(center="video", logit_scale=10.0)
        self.linear = nn.Linear(16, 8)

    def prepare(self, features):
        return super().prepare(self.linear(features.flatten(0, 1)).relu_().unflatten(0, features.shape[:2]))


def test_in_place_changes_disable_saved_results(caplog):
    model, episodes = recognizer(FrameEncoder(backbone("Smga")), InPlace()), [task(0)]
    found = in_two_passes(model, episodes)[0]
    assert "changes results in place" in caplog.text
    assert_same_gradients(found, plainly(model, episodes)[0], 1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "adapter DMGAL",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("MoLo, all trained", "DmgalFT on a ResNet", "blocks checkpointed")
        ),
    ],
)
def test_budget_is_used_and_not_exceeded(name):
    """Budgets from one video at a time without saved results, over more saved results, to all videos at once."""
    model, episodes, messages, kept, peaks = CASES[name](), [task(0)], [], [], []
    expected = plainly(model, episodes)[0]
    with LiveBytes() as live:
        loss_of(model(episodes[0]), episodes[0]).backward()
    whole = live.peak
    for share in (0.01, 0.3, 0.6, 3.0):
        two_pass = TwoPass(model, memory_budget=share * whole, notify=messages.append)
        two_pass.plan(episodes[0])
        model.zero_grad()
        torch.manual_seed(5)
        with LiveBytes() as live:
            two_pass.backward(episodes, loss_of)
        assert_same_gradients(gradients(model), expected, 1e-10)
        kept.append(len(two_pass.planner.plan.positions))
        peaks.append(live.peak / whole)
    assert len(messages) == 4 and "although one needs more" in messages[0]
    assert "of 7 videos a task, 1 at once" in messages[0] and "7 at once" in messages[3]
    if "checkpointed" not in name:  # there, all results together are small
        assert kept[0] == 0 < kept[1] <= kept[2] and kept[3] == 0
        assert "less is recomputed" in messages[1]
        assert peaks[0] < peaks[1] <= peaks[2]


def test_chunk_and_budget_combine():
    model, messages = of_adapter("DMGAL"), []
    expected = plainly(model, [task(0)])[0]
    found, _, _ = in_two_passes(model, [task(0)], 2, memory_budget=1e12, notify=messages.append)
    assert_same_gradients(found, expected, 1e-10)
    assert "of 7 videos a task, 2 at once" in messages[0] and "100% less is recomputed" in messages[0]


def test_default_budget_is_free_memory():
    two_pass = TwoPass(of_adapter("Smga"), notify=lambda message: None)
    two_pass.backward([task(0)], loss_of)
    assert two_pass.planner.plan.chunk >= 7  # a tiny model


@pytest.mark.parametrize("config", [DmgalConfig(num_frames=4), None], ids=["DMGAL", "all trained"])
@pytest.mark.slow
def test_extra_memory_is_a_small_share(config):
    """5-way 5-shot with one query per class: exact peak of live tensors above those held before."""
    network = load_backbone("tiny-clip").requires_grad_(config is None)
    network = network if config is None else peft.get_peft_model(network, config)
    model = FewShotRecognizer(FrameEncoder(network), BiMHM(center="video", logit_scale=10.0)).train()
    labels, peaks = torch.arange(5), {}
    videos = torch.randint(0, 256, (30, 4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    episode = Episode(videos[:25], labels.repeat_interleave(5), videos[25:], labels, tuple("abcde"))
    for name, chunk, keep_products in (("plain", 99, False), ("two passes", 1, True), ("nothing kept", 4, False)):
        model.zero_grad()
        with LiveBytes() as live:
            TwoPass(model, chunk, keep_products=keep_products).backward([episode], loss_of)
        peaks[name] = live.peak
    assert peaks["nothing kept"] <= peaks["plain"] / 5, peaks
    assert peaks["two passes"] <= peaks["plain"] / 4, peaks  # saved results, with adapters that save little themselves


def test_more_tasks_need_no_more_memory():
    model, peaks = of_adapter("DMGAL"), []
    for count in (1, 3):
        model.zero_grad()
        with LiveBytes() as live:
            TwoPass(model, 3).backward([task(seed) for seed in range(count)], loss_of)
        peaks.append(live.peak)
    made = 2 * sum(tensor.nbytes for tensor in (task(0).support, task(0).query))  # the tasks themselves
    assert peaks[1] <= 1.1 * peaks[0] + made


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the memory limits of Linux")
@pytest.mark.slow
def test_memory_limit_of_a_process_reduces_the_chunk():
    """The operating system refuses memory in a separate process."""
    result = forked.run([str(Path(__file__).with_name("little_memory.py"))])
    assert result.returncode == 0, result.stderr[-2000:]
    assert "out of memory with 16 videos at once" in result.stderr
    assert "same gradients" in result.stdout
