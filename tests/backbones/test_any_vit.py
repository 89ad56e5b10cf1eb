"""Tests of unknown vision transformers: found automatically, found with hints, or refused with an explanation."""

from __future__ import annotations

import pytest
import timm
import torch
from hand_written_vits import Attention, Block, HandWrittenViT, TokensFirstViT, WideViT
from tiny_backbones import TINY_BACKBONES
from torch import nn
from torchvision.models import VisionTransformer
from transformers import BeitConfig, BeitModel

from dmgal.backbones import BackboneSpec, BlockParts, FrameEncoder, describe_backbone, find_spec
from dmgal.errors import DmgalError

SIZES = {"patch": 8, "width": 32, "depth": 3, "heads": 2}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def hand_written():
    return TINY_BACKBONES["hand-written"].make()


def frozen(model):
    return model.eval().requires_grad_(False)


def images(count=2, size=(32, 32)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def encoded(model, count=2, pooling=None, **options):
    return FrameEncoder(model, pooling, **options).encode(images(count)[None])["features"][0]


class Residual(nn.Module):
    def __init__(self, norm, layer):
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x):
        return x + self.layer(self.norm(x))


class FromTorch(nn.Module):
    """A ViT with torch's own encoder: tokens first, mean of the tokens, no final norm."""

    def __init__(self, norm_first: bool):
        super().__init__()
        self.image_size = 32
        self.patches = nn.Conv2d(3, 32, 8, 8)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0)


class PairBlock(nn.Module):
    """A block without an MLP that returns tokens and attention weights."""

    def __init__(self, block):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x):
        normed = self.norm(x)
        attended, weights = self.attention(normed, normed, normed)
        return x + attended, weights


class Pairs(HandWrittenViT):
    def __init__(self):
        super().__init__(32, **SIZES)
        self.blocks = nn.ModuleList(PairBlock(block) for block in self.blocks)

    def forward(self, x):
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)], 1) + self.position
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x)[:, 0]


class Positioned(Attention):
    """An attention that adds positions to its tokens."""

    def forward(self, x):
        return super().forward(x + torch.linspace(0, 1, x.shape[1])[:, None])


class TestFoundAutomatically:
    @pytest.mark.parametrize("norm_first", [True, False])
    def test_torch_transformer_encoder_is_found(self, norm_first):
        model = frozen(FromTorch(norm_first))
        spec = find_spec(model)
        torch.testing.assert_close(encoded(model), model(images()))
        assert not spec.batch_first and spec.num_prefix_tokens == 0
        assert spec.parts == (BlockParts("norm1", "self_attn", "norm2", None) if norm_first else None)

    def test_torchvision_blocks_with_names_are_found(self):
        model = frozen(VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=5))
        spec = find_spec(model)
        assert torch.equal(encoded(model), model(images()))
        assert spec.block_names()[2] == "encoder.layers.encoder_layer_2"
        assert spec.parts == BlockParts("ln_1", "self_attention", "ln_2", "mlp")

    def test_blocks_that_return_tuples_are_found(self):
        model = frozen(Pairs())
        assert torch.equal(encoded(model), model(images()))
        assert find_spec(model).parts == BlockParts("norm", "attention", None, None)

    def test_unlisted_transformers_family_is_found(self):
        """Check transformers' BEiT, with relative positions in its attention and a preprocessor config."""
        options = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
        model = frozen(BeitModel(BeitConfig(**options, image_size=32, patch_size=8, use_relative_position_bias=True)))
        model.dmgal_preprocessing = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.4, 0.5, 0.6]}
        spec = find_spec(model)
        assert (spec.mean, spec.std, spec.num_prefix_tokens) == ((0.5, 0.5, 0.5), (0.4, 0.5, 0.6), 1)
        assert torch.equal(encoded(model), model(images()).pooler_output)

    def test_unlisted_timm_family_is_found(self):
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
        model = frozen(timm.create_model("beit_base_patch16_224", num_classes=0, **sizes))
        assert find_spec(model).num_prefix_tokens == 1
        assert torch.equal(encoded(model), model(images()))

    def test_blocks_of_two_residual_modules_are_found(self):
        model = hand_written()
        model.blocks = nn.ModuleList(
            nn.Sequential(Residual(b.norm1, b.attn), Residual(b.norm2, b.mlp)) for b in model.blocks
        )
        assert find_spec(model).parts is None
        assert torch.equal(encoded(model), model(images())) and torch.equal(encoded(model), hand_written()(images()))

    def test_leading_mlp_is_not_taken_for_attention(self):
        model = hand_written()
        for block in model.blocks:
            block.norm1, block.attn, block.norm2, block.mlp = block.norm2, block.mlp, block.norm1, block.attn
        spec = find_spec(model)
        assert spec.parts is None and spec.attend is None
        assert torch.equal(encoded(model), model(images()))

    def test_attention_with_positions_is_detected(self):
        model = hand_written()
        for block in model.blocks:
            block.attn.__class__ = Positioned
        spec = find_spec(model)
        assert spec.rotary and spec.attend is None
        assert torch.equal(encoded(model), model(images()))

    def test_spec_is_found_only_once(self):
        model = hand_written()
        spec = find_spec(model)
        model.forward = None
        assert find_spec(model) is spec


@torch.enable_grad()
def test_gradients_flow_through_pool_to_tokens():
    model = hand_written()
    spec = find_spec(model)
    tokens = torch.randn(2, 17, 32, requires_grad=True)
    spec.pool(model, tokens).sum().backward()
    assert tokens.grad[:, 0].abs().sum() > 0 and tokens.grad[:, 1:].abs().sum() == 0


class OpaqueHead(nn.Module):
    """A head whose output contains no recognizable feature."""

    def forward(self, x):
        return {"what": x}


class LastClassToken(HandWrittenViT):
    def forward(self, x):
        x = torch.cat([self.patches(x).flatten(2).transpose(1, 2), self.cls.expand(len(x), -1, -1)], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return x[:, -1]


class FromTheMiddle(HandWrittenViT):
    """A model whose feature depends on more than the last block's tokens."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        middle = self.blocks[1](self.blocks[0](x))
        return (self.blocks[2](middle) + middle).mean(1)


class MaskedBlock(Block):
    def forward(self, x, mask):
        return super().forward(x) + mask


class Masked(HandWrittenViT):
    def __init__(self):
        super().__init__(32, **SIZES)
        self.blocks = nn.ModuleList(MaskedBlock(32, 2) for _ in range(3))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, torch.zeros(16, 1))
        return self.norm(x.mean(1))


class Unblocked(HandWrittenViT):
    """A model whose blocks are lists of layers, which are never called and cannot have hooks."""

    def __init__(self):
        super().__init__(32, **SIZES)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Residual(b.norm1, b.attn), Residual(b.norm2, b.mlp)]) for b in self.blocks
        )

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for attention, mlp in self.blocks:
            x = mlp(attention(x))
        return self.norm(x).mean(1)


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = hand_written(), hand_written()

    def forward(self, x):
        return self.one(x) + self.other(x)


def blocks_out_of_order():
    model = hand_written()
    model.blocks.forward = None
    model.forward = lambda x: model.norm(model.blocks[0](model.blocks[1](model.patches(x).flatten(2).mT))).mean(1)
    return model


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (TwoTowers, "one.blocks and other.blocks are all called with tokens"),
            (lambda: LastClassToken(32, **SIZES), "row by row"),
            (lambda: FromTheMiddle(32, **SIZES), "do not give what it gives"),
            (Masked, "give run_block="),
            (Unblocked, r"no stack is called with tokens.*blocks \(3 x ModuleList"),
            (blocks_out_of_order, "not called once each, in order"),
            (lambda: hand_written().to("meta"), "meta device"),
            (lambda: nn.Sequential(hand_written().patches, nn.Flatten(2)), "stacks of equal blocks: none"),
        ],
    )
    def test_error_lists_candidates_and_remedy(self, make, message):
        with pytest.raises(DmgalError, match=message) as error:
            find_spec(make())
        assert "describe_backbone(model, blocks=" in str(error.value)
        if "none" not in message:
            assert "blocks (3 x" in str(error.value) and "width 32)" in str(error.value)

    def test_unknown_image_size_is_refused(self):
        model = hand_written()
        del model.position
        with pytest.raises(DmgalError, match="give image_size="):
            find_spec(model)

    def test_wrong_image_size_is_refused(self):
        with pytest.raises(DmgalError, match=r"could not be run on images \(2, 3, 40, 40\)"):
            describe_backbone(hand_written(), image_size=(40, 40))

    def test_unknown_blocks_path_is_refused(self):
        with pytest.raises(DmgalError, match=r"named 'layers'.*blocks \(3 x Block, width 32\)"):
            describe_backbone(hand_written(), blocks="layers")

    def test_unknown_fields_are_refused(self):
        with pytest.raises(DmgalError, match=r"received: gird\n.*grid"):
            describe_backbone(hand_written(), gird=(4, 4))


class TestDescribedByHand:
    def test_handwritten_spec(self):
        model = hand_written()
        model.dmgal_spec = BackboneSpec(
            library="mine",
            tower="",
            blocks="blocks",
            num_blocks=3,
            width=32,
            batch_first=True,
            num_prefix_tokens=1,
            grid=(4, 4),
            image_size=(32, 32),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            pools_prefix=True,
            patch_embedding="patches",
            stem=lambda model, x: (
                torch.cat([model.cls.expand(len(x), -1, -1), model.patches(x).flatten(2).transpose(1, 2)], 1)
                + model.position
            ),
            run_block=lambda model, block, tokens: block(tokens),
            pool=lambda model, tokens: model.norm(tokens[:, 0]),
            norm=lambda model, tokens: model.norm(tokens),
            project=lambda model, features: features,
        )
        assert find_spec(model).library == "mine"
        assert torch.equal(encoded(model), model(images()))

    def test_one_of_two_towers(self):
        model = frozen(TwoTowers())
        spec = describe_backbone(
            model, blocks="other.blocks", run=lambda model, x: model.other(x), mean=(0.1, 0.2, 0.3)
        )
        assert find_spec(model) is spec and spec.mean == (0.1, 0.2, 0.3)
        assert torch.equal(encoded(model), model.other(images()))
        assert [type(module) for module in spec.modules_above_blocks(model)] == [TwoTowers, HandWrittenViT]

    def test_blocks_with_extra_arguments(self):
        model = frozen(Masked())
        describe_backbone(model, run_block=lambda model, block, tokens: block(tokens, torch.zeros(16, 1)))
        assert torch.equal(encoded(model), model(images()))

    def test_model_without_own_feature(self):
        model = hand_written()
        model = nn.Sequential(model, OpaqueHead())
        find_spec(model)
        assert encoded(model, pooling="patch_mean").shape == (2, 32)
        with pytest.raises(DmgalError, match="no feature of its own"):
            encoded(model)
        describe_backbone(model, pool=lambda model, tokens: model[0].norm(tokens[:, 0]))
        assert torch.equal(encoded(model), model[0](images()))

    def test_model_that_no_longer_fits_its_spec_is_refused(self):
        model = hand_written()
        blocks = model.get_submodule(find_spec(model).blocks)
        model.forward = lambda images: images.flatten(1)
        with pytest.raises(DmgalError, match="first block of this backbone was not called"):
            encoded(model)
        del blocks[-1]
        with pytest.raises(DmgalError, match=r"2 blocks in .*\n.*3, as in its dmgal_spec"):
            find_spec(model)

    def test_patch_pooling_without_final_norm(self):
        model = frozen(FromTorch(True))
        with pytest.raises(DmgalError, match="no norm comes after its blocks"):
            encoded(model, pooling="patch_mean")
        describe_backbone(model, norm=lambda model, tokens: tokens)
        torch.testing.assert_close(encoded(model, pooling="patch_mean"), model(images()))

    def test_explicit_image_size(self):
        model = WideViT((32, 48), **SIZES)
        del model.image_size
        assert describe_backbone(model, image_size=(32, 48)).grid == (4, 6)
        tokens_first = TokensFirstViT(32, **SIZES, features=5)
        assert describe_backbone(tokens_first, std=(1.0, 1.0, 1.0)).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("wrap", [lambda f: {"feature": f}, lambda f: (f, None)], ids=["dict", "tuple"])
def test_outputs_without_a_known_feature(wrap):
    """Only the model's own pooling is refused."""

    class Wrapping(HandWrittenViT):
        def forward(self, images):
            return wrap(super().forward(images))

    model = Wrapping(32, **SIZES).eval()
    videos = torch.randn(1, 2, 3, 32, 32)
    with pytest.raises(DmgalError, match="no feature of its own"):
        FrameEncoder(model).encode(videos)
    assert FrameEncoder(model, pooling="patch_mean").encode(videos)["features"].shape == (1, 2, 32)
