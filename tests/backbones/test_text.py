"""Text towers give the library's own features, and class names become prompts."""

from __future__ import annotations

import logging

import open_clip
import pytest
import tiny_backbones
import torch
from text_towers import save_transformers
from torch.nn import functional

from dmgal.backbones import FrameEncoder, encode_class_names, load_backbone, load_text_encoder, read_descriptions
from dmgal.backbones.open_clip_vit import text_encoder
from dmgal.backbones.text import TEMPLATES
from dmgal.backbones.tiny_clip import FOLDER
from dmgal.errors import DmgalError
from dmgal.files import write_text

TEXTS = ["a red disc", "a large blue square pointing north", "cross"]


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder("tiny-clip")


@torch.no_grad()
def test_tiny_clip_equals_open_clip(encoder):
    """The features of texts and of each frame, and the logits of a video of one frame."""
    source = f"local-dir:{FOLDER}"
    model, tokenize = open_clip.create_model(source).eval(), open_clip.get_tokenizer(source)
    frames = torch.randint(0, 256, (3, 1, 3, 48, 48), dtype=torch.uint8)
    frame_encoder = FrameEncoder(load_backbone("tiny-clip"))
    features = frame_encoder.encode(frames)["features"]
    images = (frames[:, 0] / 255 - frame_encoder.mean) / frame_encoder.std
    torch.testing.assert_close(encoder.encode(TEXTS), model.encode_text(tokenize(TEXTS)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(features[:, 0], model.encode_image(images), rtol=1e-6, atol=1e-6)
    logits = encode_class_names(encoder, TEXTS, ["{}"]).logits(features)
    torch.testing.assert_close(logits, model.get_logits(images, tokenize(TEXTS))[0], rtol=1e-6, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_transformers_models_equal_their_library(tmp_path, name):
    model, tokenizer = save_transformers(tmp_path, name)
    images = torch.randn(3, 3, 32, 32)
    inputs = tokenizer(TEXTS, padding="max_length", max_length=12, return_tensors="pt")
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask") if name == "CLIP" or key == "input_ids"}
    encoder = load_text_encoder(str(tmp_path))
    expected = model.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(encoder.encode(TEXTS), expected, rtol=1e-6, atol=1e-6)
    features = FrameEncoder(load_backbone(str(tmp_path))).encode(images[:, None])["features"]
    logits = encode_class_names(encoder, TEXTS, ["{}"]).logits(features)
    expected = model(pixel_values=images, **inputs).logits_per_image
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_open_clip_with_its_own_tokenizer(caplog):
    """A random model with the vocabulary of CLIP. Emoji and other languages have tokens of their own."""
    torch.manual_seed(0)
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    model = open_clip.CLIP(16, vision, text, init_logit_bias=-3.0).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    encoder = text_encoder(model, tokenizer)
    assert encoder.logit_bias == -3.0
    texts = encode_class_names(encoder, ["brush_hair", "跳舞", "\U0001f525", "Ünlü"])
    assert texts.features.shape == (4, 16) and not caplog.records
    torch.testing.assert_close(texts.features.norm(dim=-1), torch.ones(4))
    with pytest.raises(DmgalError, match="cannot read a prompt to its end"):
        encode_class_names(encoder, ["very " * 30 + "long"])


@torch.no_grad()
def test_class_features_are_the_mean_over_prompts(encoder):
    texts = encode_class_names(encoder, ["red_disc", "Blue [square]"], ["{}", "a {}"])
    prompts = functional.normalize(encoder.encode(["blue square", "a blue square"]), dim=-1).mean(dim=0)
    torch.testing.assert_close(texts.features[1], functional.normalize(prompts, dim=0))
    assert texts.templates == ("{}", "a {}") and texts.encoder == "tiny-clip"


@torch.no_grad()
def test_videos_are_the_cosine_of_the_mean_of_normalized_frames(encoder):
    texts, frames = (
        encode_class_names(encoder, TEXTS),
        torch.randn(2, 5, 128) * torch.tensor([1, 9, 1, 1, 4.0])[:, None],
    )
    mean = functional.normalize(frames, dim=-1).mean(dim=1)
    expected = texts.logit_scale * functional.cosine_similarity(mean[:, None], texts.features[None], dim=-1)
    torch.testing.assert_close(texts.logits(frames), expected)


@torch.no_grad()
def test_descriptions_are_prompts_of_their_class(encoder, tmp_path):
    write_text(
        tmp_path / "d.csv", 'class_name,description\nRed disc,"a red, plain disc"\nred_disc,a disc\ncross,a cross\n'
    )
    descriptions = read_descriptions(tmp_path / "d.csv")
    texts = encode_class_names(encoder, ["red_disc", "cross"], ["{}"], descriptions)
    prompts = functional.normalize(encoder.encode(["red disc", "a red, plain disc", "a disc"]), dim=-1).mean(dim=0)
    torch.testing.assert_close(texts.features[0], functional.normalize(prompts, dim=0))
    with pytest.raises(DmgalError, match="Some classes have no description") as caught:
        encode_class_names(encoder, ["red_disc", "bar"], ["{}"], descriptions)
    assert "none of bar" in caught.value.received


@pytest.mark.parametrize(
    "content", ["", "name,text\na,b\n", "class_name,description\na,\n", 'class_name,description\n"a']
)
def test_unusable_descriptions_are_refused(tmp_path, content):
    write_text(tmp_path / "d.csv", content)
    with pytest.raises(DmgalError, match="descriptions of the classes cannot be used"):
        read_descriptions(tmp_path / "d.csv")


BAD_NAMES = {
    "no names": ([], "needs a name"),
    "blank": (["red", " _ "], "needs a name"),
    "equal after cleaning": (["red_disc", "Red disc"], "have the same name"),
    "brackets": (["red [disc]", "red disc"], "have the same name"),
    "humps": (["RedDisc", "red disc"], "have the same name"),
    "unknown words": (["\U0001f525", "red disc", "跳舞"], "knows no word of some class names"),
    "equal tokens": (["red spin", "red flip"], "cannot distinguish two classes"),
    "too long": (["red " * 20], "cannot read a prompt to its end"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_names_are_refused(encoder, case):
    names, message = BAD_NAMES[case]
    with pytest.raises(DmgalError, match=message):
        encode_class_names(encoder, names)


@pytest.mark.parametrize("templates", [[], ["a video"], ["{} and {}"]])
def test_templates_have_one_place(encoder, templates):
    with pytest.raises(DmgalError, match="one place for the class name"):
        encode_class_names(encoder, ["red"], templates)
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_unknown_words_are_reported(encoder, caplog):
    caplog.set_level(logging.WARNING)
    encode_class_names(encoder, ["red disc", "red spin"], ["{}"])
    assert "does not know all words of red spin" in caplog.text


@pytest.mark.parametrize("name", ["timm:test_vit", "folder"])
def test_backbones_without_text_are_refused(name, tmp_path):
    if name == "folder":
        tiny_backbones.of_transformers("Dinov2").save_pretrained(tmp_path)
        name = str(tmp_path)
    with pytest.raises(DmgalError, match="no text tower"):
        load_text_encoder(name)


def test_features_of_another_width_are_refused(encoder):
    with pytest.raises(DmgalError, match="cannot be compared with text"):
        encode_class_names(encoder, ["red"]).logits(torch.randn(1, 2, 96))
