"""Training of tiny-clip, the small CLIP that ships with dmgal, on drawn stills and their captions.

    python -m dmgal.recipes.tiny_clip.train --out my_tiny_clip

It is trained without videos: it learns appearance and position, but no motion. The output folder, including the
tokenizer, loads through open_clip's own factory: open_clip.create_model("local-dir:my_tiny_clip").
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import tyro
from torch import Generator, Tensor, nn

from dmgal.backbones.tiny_clip import FOLDER
from dmgal.progress import progress_bar
from dmgal.recipes.run.cli_errors import as_description, run_recipe
from dmgal.videos.moving_shapes.drawing import COLORS, SHAPES, TEXTURES, Appearance, Poses, draw, random_appearance

if TYPE_CHECKING:
    from open_clip import CLIP

SIZES = ("tiny", "small", "medium", "large")
SIZE_LIMITS = (0.20, 0.27, 0.36)
HEADINGS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
# Positions have many words on purpose: no adapter can distinguish motions if pooled features do not encode positions.
COLUMNS = ("leftmost", "left", "midleft", "center", "midright", "right", "rightmost")
ROWS = ("topmost", "top", "midtop", "middle", "midbottom", "bottom", "bottommost")
PLACE_LIMITS = (-0.65, -0.40, -0.15, 0.15, 0.40, 0.65)
FILLERS = ("a", "with", "pointing", "at", "shape")
START, END, PAD, UNKNOWN = "<start>", "<end>", "<pad>", "<unknown>"


@dataclass(frozen=True)
class Attribute:
    """A property that a caption may name: its words, and a phrase in which a word replaces ``{}``."""

    name: str
    words: tuple[str, ...]
    phrase: str


ATTRIBUTES = (
    Attribute("size", SIZES, "{}"),
    Attribute("color", tuple(COLORS), "{}"),
    Attribute("texture", TEXTURES, "{}"),
    Attribute("second_color", tuple(COLORS), "with {}"),
    Attribute("shape", SHAPES, "{}"),
    Attribute("heading", HEADINGS, "pointing {}"),
    Attribute("row", ROWS, "at {}"),
    Attribute("column", COLUMNS, "{}"),
)


def vocabulary() -> list[str]:
    """Return all words. The end mark has the highest index, by which open_clip's text tower finds it."""
    words = dict.fromkeys(word for attribute in ATTRIBUTES for word in attribute.words)
    return [PAD, UNKNOWN, START, *FILLERS, *words, END]


def describe(appearance: Appearance, poses: Poses) -> dict[str, Tensor]:
    """Return the index of the right word of every attribute, each ``(n,)``, for the poses of the first frame."""
    x, y, size, angle = (value[:, 0].contiguous() for value in (poses.x, poses.y, poses.size, poses.angle))
    return {
        "size": torch.bucketize(size, torch.tensor(SIZE_LIMITS)),
        "color": appearance.color,
        "texture": appearance.texture,
        "second_color": appearance.second_color,
        "shape": appearance.shape,
        "heading": torch.round(angle / (2 * math.pi / len(HEADINGS))).long() % len(HEADINGS),
        "row": torch.bucketize(y, torch.tensor(PLACE_LIMITS)),
        "column": torch.bucketize(x, torch.tensor(PLACE_LIMITS)),
    }


def captions(words: dict[str, Tensor], generator: Generator, keep: float = 1.0) -> Iterator[str]:
    """Yield one sentence per still. Each attribute is named with probability ``keep``, to include short captions."""
    count = len(words["shape"])
    is_named = torch.rand(count, len(ATTRIBUTES), generator=generator) < keep
    is_plain = words["texture"] == TEXTURES.index("plain")
    for i in range(count):
        facts = {
            attribute.name: attribute.words[int(words[attribute.name][i])]
            for attribute, named in zip(ATTRIBUTES, is_named[i].tolist(), strict=True)
            if named and not (attribute.name == "second_color" and is_plain[i])  # a plain shape has one color
        }
        yield sentence(facts)


def sentence(facts: dict[str, str]) -> str:
    """Return the caption for some facts, e.g. "a red shape" for ``{"color": "red"}``."""
    words = {"shape": "shape", **facts}
    return " ".join(["a", *(a.phrase.format(words[a.name]) for a in ATTRIBUTES if a.name in words)])


def random_poses(count: int, generator: Generator) -> Poses:
    """Draw poses of stills ``(n, 1)``: uniform in position, log size and heading."""
    uniform = torch.rand(4, count, 1, generator=generator)
    return Poses(
        x=uniform[0] * 1.8 - 0.9,
        y=uniform[1] * 1.8 - 0.9,
        size=0.14 * (0.50 / 0.14) ** uniform[2],
        angle=uniform[3] * 2 * math.pi,
    )


Tokenize = Callable[[list[str]], Tensor]
Normalize = Callable[[Tensor], Tensor]
PROMPTS = 256
"""Captions in the ensemble of one word's prompt."""
HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class TinyClipRecipe:
    """Training options of tiny-clip. The bundled weights were trained with the defaults."""

    out: Path = Path("tiny_clip")
    """Output folder."""
    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 256
    """Stills per step."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a cosine decay to zero."""
    weight_decay: float = 0.05
    """Weight decay of matrices. Biases, norms and scales have none."""
    warmup_steps: int = 200
    """Steps of linear learning rate warm-up."""
    keep: float = 0.85
    """Probability that a caption mentions an attribute."""
    seed: int = 0
    """Seed of the stills, captions and initial weights."""
    held_out_stills: int = 5000
    """Number of new stills on which zero-shot accuracy is measured."""


def stills(
    batch_size: int, pixels: int, seed: int, keep: float = 1.0
) -> Iterator[tuple[Tensor, list[str], dict[str, Tensor]]]:
    """Yield endless batches of uint8 images ``(n, 3, pixels, pixels)``, captions and correct words."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        appearances, poses = random_appearance(batch_size, generator), random_poses(batch_size, generator)
        words = describe(appearances, poses)
        images = draw(poses, appearances, pixels, generator)[:, 0]
        yield images, list(captions(words, generator, keep)), words


def write_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer in the transformers format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    index = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(index, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(mark, index[mark]) for mark in (START, END)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
    ).save_pretrained(folder)


def train(recipe: TinyClipRecipe, model: CLIP, tokenize: Tokenize, normalize: Normalize) -> list[dict[str, float]]:
    """Train contrastively and return the log of losses."""
    from open_clip.loss import ClipLoss

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_then_cosine(step, recipe))
    contrast, log, start = ClipLoss(), [], time.monotonic()
    data = stills(recipe.batch_size, model.visual.image_size[0], recipe.seed, recipe.keep)
    model.train()
    for step in (bar := progress_bar(range(recipe.steps), desc="tiny-clip", unit="step")):
        images, texts, _ = next(data)
        image_features, text_features, scale = model(normalize(images), tokenize(texts))
        loss = contrast(image_features, text_features, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        if step % 100 == 0 or step == recipe.steps - 1:
            log.append({"step": step, "loss": loss.item(), "seconds": round(time.monotonic() - start, 1)})
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return log


def _warmup_then_cosine(step: int, recipe: TinyClipRecipe) -> float:
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)))


@torch.no_grad()
def zero_shot(
    model: CLIP, tokenize: Tokenize, normalize: Normalize, seed: int, count: int
) -> dict[str, dict[str, float]]:
    """Return the zero-shot accuracy per attribute on new stills, with chance level.

    As in CLIP, a word's prompt is an ensemble: the mean embedding of ``PROMPTS`` captions with the word. Their other
    attributes are random.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    prompts = {a.name: _prompts(a, model, tokenize, generator) for a in ATTRIBUTES if a.name != "second_color"}
    right: dict[str, list[Tensor]] = {name: [] for name in prompts}
    data = stills(250, model.visual.image_size[0], seed + 1)
    for _ in range(math.ceil(count / 250)):
        images, _, words = next(data)
        features = F.normalize(model.encode_image(normalize(images)), dim=-1)
        for name, prompt in prompts.items():
            right[name].append((features @ prompt.T).argmax(1) == words[name])
    return {
        name: {
            "accuracy": round(torch.cat(hits).double().mean().item(), 4),
            "chance": round(1 / len(prompts[name]), 4),
        }
        for name, hits in right.items()
    }


def _prompts(attribute: Attribute, model: CLIP, tokenize: Tokenize, generator: Generator) -> Tensor:
    """Return one embedding per word ``(words, D)``, from the same random captions with this word replaced."""
    words = {other.name: torch.randint(len(other.words), (PROMPTS,), generator=generator) for other in ATTRIBUTES}
    embeddings = []
    for index in range(len(attribute.words)):
        words[attribute.name] = torch.full((PROMPTS,), index)
        texts = list(captions(words, generator))
        embeddings.append(F.normalize(model.encode_text(tokenize(texts)), dim=-1).mean(0))
    return F.normalize(torch.stack(embeddings), dim=-1)


def normalization(folder: Path) -> Normalize:
    """Return the function that converts uint8 images to model inputs."""
    config = json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    return lambda images: (images / 255 - mean) / std


def run(recipe: TinyClipRecipe) -> dict[str, object]:
    """Train and evaluate the model and write the folder. Return the content of ``training.json``."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(recipe.seed)
    recipe.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((FOLDER / "open_clip_config.json").read_text())
    if recipe.out.resolve() != FOLDER.resolve():
        shutil.copy(FOLDER / "open_clip_config.json", recipe.out)
    write_tokenizer(recipe.out)
    model = open_clip.CLIP(**config["model_cfg"])
    tokenize = open_clip.get_tokenizer(f"local-dir:{recipe.out}")
    normalize = normalization(recipe.out)
    log = train(recipe, model, tokenize, normalize)
    report: dict[str, object] = {
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "out"},
        "parameters": {
            "visual": sum(p.numel() for p in model.visual.parameters()),
            "all": sum(p.numel() for p in model.parameters()),
        },
        "zero_shot": zero_shot(model, tokenize, normalize, HELD_OUT_SEED, recipe.held_out_stills),
        "log": log,
    }
    save_file(model.state_dict(), recipe.out / "open_clip_model.safetensors")
    (recipe.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(argv: list[str] | None = None) -> None:
    """Run the recipe of the command line and print the results."""
    report = run(tyro.cli(TinyClipRecipe, args=argv, description=as_description(__doc__)))
    print(json.dumps({key: report[key] for key in ("parameters", "zero_shot")}, indent=2))


if __name__ == "__main__":
    run_recipe(main)
