"""Contract of an adapter on a backbone. All checks concern PEFT's own calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import peft
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from ..adapters import BlockAdapterConfig
from ..backbones import FrameEncoder, find_spec
from ..backbones.spec import base_model
from .backbones import assert_close, image_features


@dataclass(frozen=True)
class AdapterCase:
    """An adapter on a backbone.

    Args:
        make_backbone: returns a new backbone with the same weights at each call.
        config: the config of the adapter, which may be any PEFT config.
        videos: ``(V, T, 3, H, W)``, normalized.
        num_support: number of support videos, which come first.
        features: returns the model's features of images or videos.
        rounding: largest difference to the backbone's own features while the adapter does nothing. 0: bit for bit. Some
            of PEFT's wrappers compute a layer by another kernel than torch does.
    """

    make_backbone: Callable[[], nn.Module]
    config: peft.PeftConfig
    videos: Tensor
    num_support: int = 3
    features: Callable[..., Tensor] = image_features
    rounding: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.num_support < len(self.videos):
            raise ValueError(f"num_support={self.num_support} leaves no query among {len(self.videos)} videos")

    def backbone(self) -> nn.Module:
        """Return a new backbone, frozen and in evaluation mode.

        PEFT leaves it in this state, and torch selects its attention kernel accordingly.
        """
        return self.make_backbone().eval().requires_grad_(False)

    def inject(self, model: nn.Module | None = None, name: str = "default") -> peft.PeftModel:
        """Inject the adapter into a new backbone, or into ``model``, with the same initial weights at each call."""
        with ignored_warnings(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.backbone() if model is None else model
            return peft.get_peft_model(model, copy.deepcopy(self.config), adapter_name=name).eval()

    def load(
        self,
        folder: Path,
        model: nn.Module | None = None,
        adapter_name: str = "default",
        is_trainable: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> peft.PeftModel:
        """Load a saved adapter into a new backbone, or into ``model``.

        The adapter is trainable by default, because torch selects its kernels accordingly.
        """
        with ignored_warnings():
            model = self.backbone() if model is None else model
            loaded = peft.PeftModel.from_pretrained(
                model, str(folder), adapter_name, is_trainable, low_cpu_mem_usage=low_cpu_mem_usage
            )
        return loaded.eval()

    def answer(self, model: nn.Module) -> Tensor:
        """Return the features ``(V*T, D)`` of the videos' frames from one call of the model."""
        if isinstance(self.config, BlockAdapterConfig):
            return self.features(model, self.videos, num_support=self.num_support)
        return self.plain_answer(model)

    def plain_answer(self, model: nn.Module) -> Tensor:
        """Return the same features from a call with images, as for a backbone without adapters."""
        return self.features(model, rearrange(self.videos, "v t c h w -> (v t) c h w"))

    def is_plain(self, features: Tensor) -> bool:
        """Return True if the features are those of the backbone without the adapter."""
        return bool((features - self.plain_answer(self.backbone())).abs().max() <= self.rounding)

    def is_added(self, name: str) -> bool:
        """Return True if the parameter belongs to the adapter."""
        prefixes: dict[str, str] = dict(peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING.items())  # also of external types
        return prefixes[self.config.peft_type or ""] in name

    def perturb(self, model: nn.Module) -> None:
        """Move every weight of the adapter away from its initial value."""
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if self.is_added(name) or "lora_" in name:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)

    def awake(self, model: nn.Module | None = None, name: str = "default") -> peft.PeftModel:
        """Inject the adapter and perturb its weights."""
        injected = self.inject(model, name)
        self.perturb(injected)
        return injected


@torch.no_grad()  # with gradients, torch selects different attention kernels for frozen and for trainable models
def check_injected_model_is_its_backbone_bit_for_bit(case: AdapterCase) -> None:
    """Check an adapter before training, in float32 and under autocast to bfloat16."""
    assert case.is_plain(case.answer(case.inject()))
    with torch.autocast(case.videos.device.type, torch.bfloat16):
        assert case.is_plain(case.answer(case.inject()))


@torch.no_grad()
def check_output_changes_once_perturbed_and_disabling_restores_it(case: AdapterCase) -> None:
    """Check that ``disable_adapter`` restores the backbone's own output bit for bit."""
    model = case.awake()
    difference = case.answer(model) - case.plain_answer(case.backbone())
    assert difference.abs().max() > 1e-3, "the perturbed adapter does nothing"
    with model.disable_adapter():
        assert case.is_plain(case.plain_answer(model))


@torch.no_grad()
def check_two_adapters_switch_and_are_deleted(case: AdapterCase) -> None:
    """Check ``add_adapter``, ``set_adapter`` and ``delete_adapter``."""
    model = case.awake()
    first = case.answer(model)
    model.add_adapter("other", copy.deepcopy(case.config))
    assert torch.equal(case.answer(model), first)
    model.set_adapter("other")
    model.eval()
    assert case.is_plain(case.answer(model))
    model.set_adapter("default")
    assert torch.equal(case.answer(model), first)
    model.delete_adapter("other")
    assert not any(".other." in name for name, _ in model.named_parameters())
    assert torch.equal(case.answer(model), first)


@torch.no_grad()
def check_unload_leaves_no_trace(case: AdapterCase) -> None:
    """Check ``unload`` on the model and on a deep copy."""
    plain = case.backbone()
    model = case.awake()
    for unloaded in (copy.deepcopy(model).unload(), model.unload()):
        assert [name for name, _ in unloaded.named_modules()] == [name for name, _ in plain.named_modules()]
        assert unloaded.state_dict().keys() == plain.state_dict().keys()
        assert _num_hooks(unloaded) == _num_hooks(plain)
        assert case.is_plain(case.plain_answer(unloaded))


def check_gradients_reach_all_adapter_parameters_and_no_others(case: AdapterCase) -> None:
    """Check the gradients of a loss that depends on the class token and the patches."""
    model = case.awake()
    encoder = FrameEncoder(model, pooling="cls+patch_mean")
    features = torch.cat(encoder(case.videos[: case.num_support], case.videos[case.num_support :]))
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    (features * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == case.is_added(name), name
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == case.is_added(name), name


@torch.no_grad()
def check_saved_adapter_holds_only_itself_and_loads_anywhere(case: AdapterCase) -> None:
    """Check loading under the same and another name, with ``low_cpu_mem_usage``, and beside another adapter.

    A deep copy of the model has to give the same features, too.
    """
    model = case.awake()
    expected = case.answer(model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(name)
        saved = load_file(folder / "adapter_model.safetensors")
        num_saved, num_trained = sum(map(Tensor.numel, saved.values())), model.get_nb_trainable_parameters()[0]
        if getattr(case.config, "save_projection", False):  # VeRA and RandLoRA save their random matrices too
            num_saved = min(num_saved, num_trained)
        assert num_saved == num_trained > 0
        assert (folder / "README.md").is_file()
        for options in ({}, {"adapter_name": "renamed"}, {"low_cpu_mem_usage": True}):
            assert torch.equal(case.answer(case.load(folder, **options)), expected), options
        second = case.inject()
        with ignored_warnings():
            second.load_adapter(str(folder), "second")
        second.set_adapter("second")
        assert torch.equal(case.answer(second.eval()), expected)
        assert torch.equal(case.answer(copy.deepcopy(model)), expected)


@torch.no_grad()
def check_lora_stands_below_and_above(case: AdapterCase) -> None:
    """Check that LoRA and the adapter act, are saved and are loaded in either order."""
    without_lora = case.answer(case.awake())
    for order in ("lora first", "adapter first"):
        inner, outer = _stacked(case, order)
        expected = case.answer(outer)
        assert (expected - without_lora).abs().max() > 1e-3, "LoRA does nothing"
        with TemporaryDirectory() as folder:
            for model, name in ((inner, "inner"), (outer, "outer")):
                with ignored_warnings():
                    model.save_pretrained(f"{folder}/{name}", selected_adapters=[name])
            loaded = case.backbone()
            for name in ("inner", "outer"):
                loaded = case.load(Path(folder, name, name), loaded, adapter_name=name)
            assert torch.equal(case.answer(loaded), expected), order


@torch.no_grad()
def check_lora_is_merged_while_the_adapter_stays(case: AdapterCase) -> None:
    """Check merging a LoRA in either order, unloading an inner LoRA, and unloading the adapter around a LoRA."""
    for order in ("lora first", "adapter first"):
        inner, outer = _stacked(case, order)
        expected = case.answer(outer)
        (inner if order == "lora first" else outer).merge_adapter()
        assert_close(case.answer(outer), expected)
    inner, outer = _stacked(case, "lora first")
    expected = case.answer(outer)
    inner.merge_and_unload()
    assert_close(case.answer(outer), expected)
    inner, outer = _stacked(case, "lora first")
    remaining = outer.unload()
    assert torch.equal(case.plain_answer(remaining), case.plain_answer(_lora(case, case.backbone())))


@torch.no_grad()
def check_modules_to_save_are_saved(case: AdapterCase) -> None:
    """Check PEFT's ``modules_to_save``: a trained part of the backbone is saved and unloaded with the adapter."""
    config, backbone = copy.deepcopy(case.config), case.backbone()
    norms = [name for name, module in backbone.named_modules() if isinstance(module, nn.LayerNorm)]
    vars(config)["modules_to_save"] = [norms[-1] if norms else find_spec(backbone).patch_embedding]
    with ignored_warnings():
        model = peft.get_peft_model(backbone, config).eval()
    case.perturb(model)
    for key, parameter in model.named_parameters():
        if "modules_to_save" in key:
            parameter.add_(0.1)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        assert torch.equal(case.answer(case.load(Path(folder))), case.answer(model))
    assert case.is_plain(case.plain_answer(model.unload()))


@torch.no_grad()
def check_straight_through_equals_relate_of_encode(case: AdapterCase) -> None:
    """Check that videos encoded one by one and then related have the features of one call."""
    model = case.awake()
    encoder = FrameEncoder(model)
    states = [encoder.encode(video[None]) for video in case.videos]
    support, query = (type(states[0]).cat(part) for part in (states[: case.num_support], states[case.num_support :]))
    related = torch.cat(encoder.relate(support, query))
    assert_close(rearrange(related, "v t d -> (v t) d"), case.answer(model))


def check_checkpointed_blocks_give_the_same_gradients(case: AdapterCase) -> None:
    """Check that recomputation by ``FrameEncoder(..., checkpoint_blocks=True)`` gives the same gradients."""
    gradients = []
    for checkpoint in (False, True):
        model = case.awake()
        encoder = FrameEncoder(model, checkpoint_blocks=checkpoint)
        for _ in range(2):  # the second step would show state left over from the first
            model.zero_grad()
            features = torch.cat(encoder(case.videos[: case.num_support], case.videos[case.num_support :]))
            features.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@torch.no_grad()
def check_half_precision_weights_run(case: AdapterCase) -> None:
    """Check a bfloat16 or float16 backbone with adapters in float32 (PEFT's default) or in the same precision."""
    expected = case.answer(case.awake())
    for dtype in (torch.bfloat16, torch.float16):
        half = replace(case, make_backbone=partial(_half_backbone, case, dtype), videos=case.videos.to(dtype))
        model = half.awake()
        features = half.answer(model)
        assert features.dtype == dtype
        _assert_near(features, expected)
        _assert_near(half.answer(model.to(dtype)), expected)


ADAPTER_CHECKS: tuple[Callable[[AdapterCase], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)
"""All checks of this module, in its order."""


@contextmanager
def ignored_warnings() -> Iterator[None]:
    """Ignore warnings, because PEFT warns about a second adapter in one model and some checks need one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _stacked(case: AdapterCase, order: str) -> tuple[peft.PeftModel, peft.PeftModel]:
    """Return the inner and the outer of two nested PEFT models, one of which is a LoRA."""
    if order == "lora first":
        inner = _lora(case, case.backbone(), "inner")
        outer = case.inject(inner, "outer")
        case.perturb(outer)
        _reseed_lora(outer)
    else:
        inner = case.awake(name="inner")
        outer = _lora(case, inner, "outer")
    return inner, outer


def _lora(case: AdapterCase, model: nn.Module, name: str = "default") -> peft.PeftModel:
    """Add a LoRA with nonzero weights to the linear layers of the blocks' MLPs, or to the blocks' convolutions."""
    linear = _layers_in_blocks(case, model, nn.Linear, ("mlp", "fc", "intermediate"))
    linear = linear or _layers_in_blocks(case, model, nn.Conv2d, ("",))
    with ignored_warnings():
        lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=linear), adapter_name=name).eval()
    _reseed_lora(lora)
    return lora


def _layers_in_blocks(case: AdapterCase, model: nn.Module, kind: type[nn.Module], names: tuple[str, ...]) -> list[str]:
    return [
        f"{block}.{path}"
        for block in find_spec(model).block_names()
        for path, module in base_model(model).get_submodule(block).named_modules()
        if isinstance(module, kind)
        and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        and getattr(module, "groups", 1) == 1
        and any(name in path for name in names)
        and not case.is_added(path)
    ]


def _reseed_lora(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)


def _half_backbone(case: AdapterCase, dtype: torch.dtype) -> nn.Module:
    return case.backbone().to(dtype)


def _num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _assert_near(features: Tensor, expected: Tensor) -> None:
    """Compare up to a tenth of the largest feature: half precision through a few layers of random weights."""
    assert features.isfinite().all()
    difference = (features.float() - expected.float()).abs().max() / expected.abs().max()
    assert difference < 0.1, f"differs by {difference:.3f} of the largest feature"
