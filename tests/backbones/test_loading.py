"""Tests of loading by name: bundled and local models load offline, and errors name what is missing."""

from __future__ import annotations

import json
import os
import socket
import sys

import open_clip
import pytest
import timm
import torch
import transformers
from huggingface_hub import constants
from tiny_backbones import TINY_BACKBONES, of_transformers, of_transformers_whole, root

from dmgal.backbones import FrameEncoder, describe_backbone, find_spec, load_backbone
from dmgal.backbones.spec import require_hub
from dmgal.backbones.transformers_vit import height_and_width
from dmgal.errors import DmgalError

SAVED_BY_TRANSFORMERS = (
    "transformers CLIP",
    "transformers CLIP projected",
    "SigLIP",
    "ViT",
    "DeiT",
    "ViT-MAE",
    "DINOv2",
    "DINOv2 registers",
    "DINOv3",
)


def features_of(model, frames):
    return FrameEncoder(model).encode(frames[None])["features"][0]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def frames():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def of_kind(kind: str) -> torch.nn.Module:
    """Return a tiny model of transformers."""
    if kind == "ResNet":
        return transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        )
    return of_transformers(kind)


class TestTransformersFolders:
    @pytest.mark.parametrize("name", SAVED_BY_TRANSFORMERS)
    def test_saved_visual_tower_has_equal_features(self, name, tmp_path, frames):
        backbone = TINY_BACKBONES[name]
        model = backbone.make()
        model.save_pretrained(tmp_path)
        loaded = load_backbone(str(tmp_path))
        assert not loaded.training and type(loaded) is type(model)
        torch.testing.assert_close(features_of(loaded, frames), backbone.features(model, frames), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("CLIP", lambda model, x: model.visual_projection(model.vision_model(pixel_values=x).pooler_output)),
            ("Siglip", lambda model, x: model.vision_model(pixel_values=x).pooler_output),
        ],
    )
    def test_whole_model_loads_as_visual_tower(self, name, expected, tmp_path, frames):
        torch.manual_seed(0)
        model = of_transformers_whole(name).eval()
        model.save_pretrained(tmp_path)
        loaded = load_backbone(str(tmp_path))
        assert not any("text" in parameter for parameter, _ in loaded.named_parameters())
        torch.testing.assert_close(features_of(loaded, frames), expected(model, frames), rtol=0, atol=1e-6)

    def test_pooler_without_saved_weights_is_removed(self, tmp_path, frames):
        """Check a saved classifier, which lacks the pooler of a bare model."""
        torch.manual_seed(0)
        config = TINY_BACKBONES["ViT"].make().config
        model = transformers.ViTForImageClassification(config).eval()
        model.save_pretrained(tmp_path)
        expected = model.vit(pixel_values=frames).last_hidden_state[:, 0]
        torch.testing.assert_close(features_of(load_backbone(str(tmp_path)), frames), expected, rtol=0, atol=1e-6)

    def test_error_names_missing_weights(self, tmp_path):
        model = TINY_BACKBONES["DINOv2"].make()
        state = {name: tensor for name, tensor in model.state_dict().items() if "layer.1.norm1" not in name}
        model.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(DmgalError, match=r"Weights of this backbone are missing(.|\n)*layer\.1\.norm1\.bias"):
            load_backbone(str(tmp_path))

    def test_preprocessor_config_sets_size_and_normalization(self, tmp_path):
        TINY_BACKBONES["DINOv2"].make().save_pretrained(tmp_path)
        config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "crop_size": {"height": 48, "width": 48}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        spec = find_spec(load_backbone(str(tmp_path)))
        assert (spec.mean, spec.std, spec.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (48, 48))

    @pytest.mark.parametrize(
        ("values", "size"),
        [
            ({"size": 48}, (48, 48)),
            ({"size": [48, 64]}, (48, 64)),
            ({"size": {"height": 48, "width": 64}}, (48, 64)),
            ({"size": {"shortest_edge": 64}, "crop_size": 48}, (48, 48)),
            ({"size": {"shortest_edge": 64}, "crop_size": 48, "do_center_crop": False}, (64, 64)),
            ({"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 64}}, (48, 64)),
        ],
    )
    @pytest.mark.parametrize("kind", ["Dinov2", "DINOv3ViT", "ResNet"])
    def test_sizes_in_all_forms(self, kind, values, size):
        model = of_kind(kind)
        model.dmgal_preprocessing = values
        assert FrameEncoder(model).image_size == size

    @pytest.mark.parametrize(
        ("values", "mean", "std"),
        [
            ({"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
            ({"image_mean": [0.5], "image_std": [0.25] * 3}, 0.5, 0.25),
            ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_normalize": False}, 0.0, 1.0),
            ({"image_mean": 127.5, "image_std": 63.75, "do_rescale": False}, 0.5, 0.25),
            ({"image_mean": 1.0, "image_std": 0.5, "rescale_factor": 2 / 255}, 0.5, 0.25),
        ],
    )
    @pytest.mark.parametrize("kind", ["CLIPVision", "Dinov2", "ResNet"])
    def test_normalization_in_all_forms(self, kind, values, mean, std):
        model = of_kind(kind)
        model.dmgal_preprocessing = values
        encoder = FrameEncoder(model)
        assert encoder.mean.flatten().tolist() == pytest.approx([mean] * 3)
        assert encoder.std.flatten().tolist() == pytest.approx([std] * 3)

    @pytest.mark.parametrize(
        "values",
        [{"size": "large"}, {"size": {"longest_edge": 48}}, {"size": [48]}, {"size": 0}, {"size": True}]
        + [{"image_mean": "grey"}, {"image_std": [0.5, 0.5]}, {"image_std": 0}, {"rescale_factor": 0}],
    )
    def test_unknown_forms_of_values_raise(self, values):
        model = of_kind("ResNet")
        model.dmgal_preprocessing = values
        with pytest.raises(DmgalError, match=r"preprocessor_config\.json(.|\n)*" + next(iter(values))):
            FrameEncoder(model)

    def test_resnet_maps_match_normalized_images(self, test_data):
        folder = test_data / "weights" / "resnet50-imagenet"
        backbone = load_backbone(str(folder))
        encoder = FrameEncoder(backbone, "map")
        assert (encoder.width, encoder.image_size) == (2048, (224, 224))
        frames = torch.randint(0, 256, (1, 2, 3, 224, 224), dtype=torch.uint8)
        maps = encoder.encode(frames)["features"]
        assert maps.shape == (1, 2, 2048, 7, 7) and maps.dtype == torch.float32
        mean = torch.tensor(backbone.dmgal_preprocessing["image_mean"]).view(3, 1, 1)
        expected = backbone((frames[0] / 255 - mean) * 255).last_hidden_state
        torch.testing.assert_close(maps[0], expected, rtol=1e-4, atol=1e-4)


class TestTimm:
    def test_timm_folder_is_not_loaded_by_transformers(self, tmp_path):
        model = timm.create_model("test_vit", num_classes=3).eval()
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        loaded = load_backbone(str(tmp_path))
        size = find_spec(loaded).image_size
        frames = torch.randn(2, 3, *size)
        expected = model.forward_head(model.forward_features(frames), pre_logits=True)
        torch.testing.assert_close(features_of(loaded, frames), expected, rtol=0, atol=1e-6)

    def test_folder_with_pickled_weights_is_refused(self, tmp_path):
        timm.models.save_for_hf(timm.create_model("test_vit"), tmp_path)
        with pytest.raises(DmgalError, match=r"model\.safetensors(.|\n)*safe_serialization=True"):
            load_backbone(str(tmp_path))

    def test_name_without_weights_gives_a_random_model(self):
        backbone = load_backbone("timm:test_vit")
        assert find_spec(backbone).library == "timm" and not backbone.training
        assert isinstance(backbone.head, torch.nn.Identity)

    @pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
    def test_cnn_maps_match_normalized_images(self, name):
        backbone = load_backbone(f"timm:{name}")
        default = tuple(backbone.pretrained_cfg["input_size"][1:])
        assert FrameEncoder(backbone).image_size == default
        describe_backbone(backbone, image_size=(64, 64))
        encoder = FrameEncoder(backbone, "map")
        frames = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8)
        config = backbone.pretrained_cfg
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
        expected = backbone.forward_features((frames.flatten(0, 1) / 255 - mean) / std)
        maps = encoder.encode(frames)["features"]
        assert maps.shape == (2, 2, encoder.width, 2, 2)
        torch.testing.assert_close(maps.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
        pooled = FrameEncoder(backbone).encode(frames)["features"]
        torch.testing.assert_close(pooled.flatten(0, 1), backbone((frames.flatten(0, 1) / 255 - mean) / std))

    def test_unusable_normalization_is_refused(self):
        model = timm.create_model("test_vit")
        model.pretrained_cfg = {**model.pretrained_cfg, "std": (0.0, 0.0, 0.0)}
        with pytest.raises(DmgalError, match=r"wrong values\.\n.*std: \(0\.0, 0\.0, 0\.0\)"):
            find_spec(model)

    def test_missing_timm_error_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(DmgalError, match=r"pip install 'dmgal\[timm\]'"):
            load_backbone("timm:vit_base_patch16_224")


class TestOpenClip:
    def test_name_without_weights_gives_a_random_model(self):
        assert FrameEncoder(load_backbone("open_clip:ViT-S-32-alt")).spec.num_blocks == 12

    @pytest.mark.parametrize(("weights", "quick"), [("openai", True), ("laion2b_s34b_b88k", False), ("OpenAI", True)])
    def test_weights_get_the_activation_of_their_training(self, weights, quick, monkeypatch):
        options_used = {}
        model = TINY_BACKBONES["open_clip whole"].make()
        monkeypatch.setattr(open_clip, "create_model", lambda name, **options: options_used.update(options) or model)
        assert load_backbone(f"open_clip:ViT-B-16/{weights}") is root(model).visual
        assert options_used == {"pretrained": weights, "force_quick_gelu": quick}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "tiny-clip, open_clip:MODEL"),
        ("open_clip:", "tiny-clip, open_clip:MODEL"),
        ("mine:model", "import its module"),
        ("open_clip:ViT-Z-99", "no such model"),
        ("open_clip:ViT-B-16/mine", "no such weights of ViT-B-16.\n.*mine\n.*openai, "),
        ("open_clip:ViT-B-32/laion400m_e32", "go online once"),
        ("hf:nobody/nothing", "go online once"),
        ("hf:facebook/dinov2-base", "go online once"),
        ("timm:vit_huge_patch1", "no such model"),
        ("timm:vit_tiny_patch16_224.mine", "no such weights of vit_tiny_patch16_224.\n.*mine\n.*augreg_in21k"),
        ("timm:vit_tiny_patch16_224.augreg_in21k", "go online once"),
    ],
)
def test_load_error_explains_the_options(name, message):
    with pytest.raises(DmgalError, match=message):
        load_backbone(name)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DmgalError, match=r"config\.json"):
        load_backbone(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_folder_with_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(DmgalError, match=r"config\.json: a pipe instead of a regular file"):
        load_backbone(str(tmp_path))


class TestUnreachableHub:
    @pytest.fixture(autouse=True)
    def online(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)

    @pytest.fixture
    def lookups(self, monkeypatch):
        """The looked-up names, none of which is found."""
        names = []

        def unknown(host, *arguments, **options):
            names.append(host)
            raise socket.gaierror("Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        return names

    @pytest.mark.parametrize(
        "name",
        ["hf:facebook/dinov2-base", "timm:vit_tiny_patch16_224.augreg_in21k", "open_clip:ViT-B-32/laion400m_e32"],
    )
    def test_unresolvable_host_raises_without_retries(self, name, lookups):
        with pytest.raises(DmgalError, match=r"huggingface\.co cannot be resolved\n.*\n.*HF_HUB_OFFLINE=1"):
            load_backbone(name)
        assert lookups == ["huggingface.co"]

    def test_models_without_weights_need_no_hub(self, lookups):
        load_backbone("timm:test_vit")
        assert lookups == []

    def test_offline_mode_skips_the_lookup(self, lookups, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        require_hub()
        assert lookups == []

    def test_proxy_skips_the_lookup(self, lookups, monkeypatch):
        monkeypatch.setenv("https_proxy", "http://proxy:80")
        require_hub()
        assert lookups == []

    def test_resolvable_host_is_accepted(self, monkeypatch):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: ["an address"])
        require_hub()


@pytest.mark.parametrize("configured", [[], [64], [64, 64, 3]])
def test_image_size_of_another_length_is_one_error(configured):
    with pytest.raises(DmgalError, match="no usable image size"):
        height_and_width(configured)
