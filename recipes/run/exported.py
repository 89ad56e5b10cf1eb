"""Export of a recognizer's two halves as programs that run without dmgal: ``encode`` per video, ``relate`` per task.

``encode`` maps uint8 clips ``(V, T, 3, H, W)`` of any number to the tensors of their states, in the order of
``states`` in ``model.json``. ``relate`` exists for a Cmga: it maps the states of support and of query videos to their
frame features. The number of frames and the image size are fixed.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor, nn

from dmgal.backbones import VideoState
from dmgal.episodes import FewShotRecognizer
from dmgal.errors import DmgalError
from dmgal.files import atomic_write, write_text
from dmgal.recipes.run.config import Recipe

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
MOST_VIDEOS = 4096
"""Largest number of videos in one call of an exported program."""


class Encode(nn.Module):
    """The states of clips, as a tuple of tensors in alphabetical order of their names."""

    def __init__(self, recognizer: FewShotRecognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the states, each ``(V, ...)``, of uint8 clips ``(V, T, 3, H, W)``."""
        states = self.recognizer.encode(clips)
        return tuple(states[name] for name in sorted(states))


class Relate(nn.Module):
    """The frame features of a task from the states of its videos, which are tuples as those of `Encode`."""

    def __init__(self, recognizer: FewShotRecognizer, names: Sequence[str]) -> None:
        super().__init__()
        self.recognizer, self.names = recognizer, tuple(names)

    def forward(self, support: tuple[Tensor, ...], query: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the features ``(S, T, D)`` and ``(Q, T, D)``."""
        states = (VideoState(zip(self.names, part, strict=True)) for part in (support, query))
        return self.recognizer.encoder.relate(*states)


def quantize_program(path: Path) -> None:
    """Replace the weights of an ONNX program's matrix products by 8 bits, with a scale for each column, in place.

    onnxruntime rounds the inputs of the products to 8 bits by the range of the whole call. Its quantizer only knows
    weights that a product reads directly, so the transposes between them are folded first.

    Raises:
        DmgalError: the libraries of ONNX are missing.
        OSError: the program cannot be written.
    """
    _require_onnx()
    quantization = import_module("onnxruntime.quantization")
    preprocessing = import_module("onnxruntime.quantization.shape_inference")
    with TemporaryDirectory() as folder, atomic_write(path) as temporary, _silence():
        folded = Path(folder) / path.name
        preprocessing.quant_pre_process(path, folded, skip_symbolic_shape=True, skip_onnx_shape=True)
        quantization.quantize_dynamic(
            folded, temporary, per_channel=True, reduce_range=True, op_types_to_quantize=["MatMul", "Gemm"]
        )


@dataclass(frozen=True)
class Exported:
    """The written files.

    Attributes:
        programs: ``encode`` and, for a Cmga, ``relate``.
        description: ``model.json``.
        difference: largest difference between the programs and the recognizer on random clips, relative to the largest
            value.
    """

    programs: tuple[Path, ...]
    description: Path
    difference: float


@torch.no_grad()
def export_recognizer(
    recipe: Recipe, recognizer: FewShotRecognizer, out: Path, form: Format, int8: bool = False
) -> Exported:
    """Write the programs of a recognizer and their description into a folder, and compare them with the recognizer.

    With ``int8``, the program ``encode`` is quantized, see `quantize_program`.

    Raises:
        DmgalError: the libraries of ONNX are missing, or the model cannot be exported or quantized.
        OSError: the files cannot be written.
    """
    _check_exportable(recipe, form, int8)
    recognizer = recognizer.eval().cpu()
    for parameter in recognizer.parameters():
        parameter.requires_grad_(False)
    shape = (7, recipe.data.num_frames, 3, *recognizer.encoder.image_size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    states = recognizer.encode(clips)
    names, any_videos = sorted(states), torch.export.Dim("videos", min=1, max=MOST_VIDEOS)
    out.mkdir(parents=True, exist_ok=True)
    encode = _Program(Encode(recognizer).eval(), "encode", form)
    programs = [encode.write(out, (clips[:3],), ({0: any_videos},))]
    if int8:
        quantize_program(programs[0])
    differences = [encode.difference(programs[0], (part,)) for part in (clips[:1], clips[:5])]
    if recognizer.encoder.has_task_layer:
        tensors = [states[name] for name in names]
        support, query = (tuple(tensor[part] for tensor in tensors) for part in (slice(0, 3), slice(3, 5)))
        dims = [torch.export.Dim(name, min=1, max=MOST_VIDEOS) for name in ("support", "query")]
        relate = _Program(Relate(recognizer, names).eval(), "relate", form)
        programs.append(relate.write(out, (support, query), tuple(({0: dim},) * len(names) for dim in dims)))
        one = tuple(tensor[5:6] for tensor in tensors)
        differences += [relate.difference(programs[1], parts) for parts in ((support, one), (one, query))]
    description = out / "model.json"
    content = _description(recipe, recognizer, names) | {"int8": int8}
    write_text(description, json.dumps(content, indent=2) + "\n")
    return Exported(tuple(programs), description, max(differences))


def _check_exportable(recipe: Recipe, form: Format, int8: bool) -> None:
    if int8 and form != "onnx":
        raise DmgalError(
            "Only ONNX programs are quantized.",
            received=f"--int8 with --format {form}",
            expected="--format onnx",
            remedy="Remove --int8, or export as ONNX.",
        )
    if recipe.backbone.quantize is not None:
        raise DmgalError(
            "A quantized backbone cannot be exported.",
            received=f"backbone.quantize: {recipe.backbone.quantize}",
            expected="a backbone of floats, which --int8 quantizes after the export",
            remedy="Set backbone.quantize in the run's recipe.yaml to null and pass --int8. Adapters fit both.",
        )


def _description(recipe: Recipe, recognizer: FewShotRecognizer, names: Sequence[str]) -> dict[str, object]:
    """Return what a program without dmgal needs to know: its inputs, the states, and the head."""
    scale = getattr(recognizer.head, "log_scale", None)
    return {
        "frames": recipe.data.num_frames,
        "image_size": list(recognizer.encoder.image_size),
        "resize": recipe.data.test_resize,
        "input": "uint8 RGB clips (videos, frames, 3, height, width), frames uniformly spaced, center crop",
        "states": list(names),
        "head": dict(recipe.head),
        "logit_scale": None if scale is None else float(scale.exp()),
        "task_layer": bool(recognizer.encoder.has_task_layer),
    }


class _Program:
    """A module to be exported in one format."""

    def __init__(self, module: nn.Module, name: str, form: Format) -> None:
        self.module, self.name, self.form = module, name, form
        if form == "onnx":
            _require_onnx()

    def write(self, out: Path, inputs: tuple[object, ...], dynamic: tuple[object, ...]) -> Path:
        """Export and write the program, and return its path."""
        path = out / f"{self.name}{SUFFIXES[self.form]}"
        try:
            with _silence():
                program = torch.export.export(self.module, inputs, dynamic_shapes=dynamic, strict=False)
                if self.form == "torch":
                    torch.export.save(program, path)
                else:
                    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
                    assert onnx is not None
                    onnx.save(str(path))
        except (OSError, DmgalError):
            raise
        except Exception as error:  # torch's exporter fails in many ways
            raise DmgalError(
                "This model cannot be exported.",
                received=f"{self.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                expected="a model whose steps do not depend on the number of videos",
                remedy="Please report the model. 'dmgal recognize' runs it without an export.",
            ) from error
        return path

    def difference(self, path: Path, inputs: tuple[object, ...]) -> float:
        """Return the largest difference between the written program and the module, relative to the largest value."""
        expected = self.module(*inputs)
        found = self._run(path, inputs)
        pairs = list(zip(found, expected, strict=True))
        return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in pairs if b.numel())

    def _run(self, path: Path, inputs: tuple[object, ...]) -> list[Tensor]:
        if self.form == "torch":
            return list(torch.export.load(path).module()(*inputs))
        runtime = import_module("onnxruntime")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        flat = [tensor for part in inputs for tensor in (part if isinstance(part, tuple) else (part,))]
        feed = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), flat, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]


def _require_onnx() -> None:
    try:
        for name in ("onnxruntime", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise DmgalError(
            "The libraries of ONNX are missing.",
            received=f"no module {error.name}",
            expected="onnx, onnxscript and onnxruntime",
            remedy="Run pip install 'dmgal[onnx]', or choose --format torch.",
        ) from error


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the reports of torch's exporters on standard output and in the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
