"""Export of a run as ONNX or torch programs, which encode videos without dmgal.

    dmgal export runs/mine --out exported
    dmgal export runs/mine --int8 --out exported
    dmgal export runs/mine --format torch --out exported

Writes encode.onnx, which maps any number of uint8 clips to the states that a gallery stores, relate.onnx for a run with
a Cmga, and model.json with the frames, the image size and the head. With --format torch, the programs end in .pt2. They
are compared with the run before the command ends. ONNX needs the optional extra 'onnx': pip install 'dmgal[onnx]'. In
the repository, examples/onnx_recognize.py recognizes clips with a gallery by onnxruntime, PyAV and numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dmgal.errors import DmgalError
from dmgal.files import printable
from dmgal.recipes.run.cli_errors import parse_options, run_recipe
from dmgal.recipes.run.evaluation import load_run
from dmgal.recipes.run.exported import Format, export_recognizer
from dmgal.recipes.run.folder import Run


@dataclass(frozen=True)
class Export:
    """Options of the command."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, written by dmgal train."""
    out: Path | None = None
    """Folder of the programs. None: RUN/exported."""
    format: Annotated[Format, tyro.conf.arg(metavar="onnx|torch")] = "onnx"
    """onnx: programs for onnxruntime. torch: programs for torch.export.load."""
    int8: bool = False
    """Keep the weights of encode.onnx in 8 bits, which is smaller and less exact. Not with --format torch."""


def main(argv: list[str] | None = None) -> int | None:
    """Export the run named on the command line."""
    options = parse_options(Export, argv, "export", __doc__)
    recipe, recognizer = load_run(Run(options.run))
    out = options.out or options.run / "exported"
    try:
        written = export_recognizer(recipe, recognizer, out, options.format, options.int8)
    except OSError as error:
        raise DmgalError(
            "The export cannot be written.",
            received=f"{printable(str(out))}: {error}",
            expected="a writable folder with enough space",
            remedy="Choose another --out.",
        ) from error
    for path in (*written.programs, written.description):
        print(f"{printable(str(path))}  {path.stat().st_size / 1e6:.1f} MB")
    print(f"largest difference to the run on random clips: {written.difference:.1e} of the largest value")
    return None


if __name__ == "__main__":
    run_recipe(main)
