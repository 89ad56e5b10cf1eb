"""The pictures of the documentation, made by ``dmgal visualize`` from generated clips.

    python -m dmgal.bench.docs_pictures          write docs/figures/*.webp (make figures)

The clips are motion world's, the model is tiny-clip with the motion adapter that ships with dmgal. Nothing is trained.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from dmgal.recipes.reports.shown_clips import Drawing
from dmgal.recipes.visualize import Visualize, run
from dmgal.videos.generated import write_video
from dmgal.videos.motion_world.clips import MotionWorld

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
CLASSES = ("kick", "bow", "jump_up", "flap_arms")
QUERY = "kick"
WIDTH, QUALITY = 1200, 88
"""Width in pixels and quality of a committed picture, which then has less than 150 KB."""


def write_clips(folder: Path) -> Path:
    """Write a clip of each class into ``folder/actions``, and return the path of a query."""
    settings = MotionWorld(seed=0, clips_per_class=2, pixels=96)
    names = [one.name for one in settings.classes()]
    for name in CLASSES:
        (folder / "actions" / name).mkdir(parents=True)
        write_video(folder / "actions" / name / "1.mp4", settings.clip(names.index(name), 0))
    query = folder / "query.mp4"
    write_video(query, settings.clip(names.index(QUERY), 1))
    return query


def shrink(path: Path, out: Path) -> None:
    """Write a picture with fewer pixels as WebP."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((WIDTH, round(picture.height * WIDTH / picture.width)))
    small.save(out, quality=QUALITY, method=6)


def main() -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        query = write_clips(folder)
        for name, paths in (("motion_maps", (query,)), ("task", (folder / "actions", query))):
            drawn, out = folder / f"{name}.png", FIGURES / f"{name}.webp"
            run(Visualize(paths, out=drawn, drawing=Drawing(layer="smga.0")))
            shrink(drawn, out)
            print(f"{out.name}: {out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
