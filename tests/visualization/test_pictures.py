"""Figures and films of every kind, written in every format and read again."""

from __future__ import annotations

from xml.etree import ElementTree

import av
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image

from dmgal.errors import DmgalError
from dmgal.visualization import drawing, figures, films, plots, save_film, save_picture
from dmgal.visualization.maps import Recording
from dmgal.visualization.projection import principal_plane, state_vectors, tsne_plane


def recording(attention: str = "across", num_support: int = 2) -> Recording:
    """A recording of small random tensors."""
    generator = torch.Generator().manual_seed(0)
    motion = torch.randn(2, num_support + 1, 3, 17, 4, generator=generator)
    frames = torch.randint(0, 256, (num_support + 1, 3, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Recording(frames, num_support, "x", "Layer x", attention, motion, motion, 1, (4, 4))


DRAWN = {
    "maps": lambda: figures.motion_maps(recording()),
    "pair": lambda: figures.pair_maps(recording(), (0, 0), (2, 1)),
    "attention": lambda: figures.attention_overlay(recording("within")),
    "task": lambda: figures.task_attention(recording(), [0, 1], ["one", "two"], answer="one (60 %)"),
    "time": lambda: plots.motion_over_time(recording()),
    "gallery": lambda: plots.gallery_plot(torch.rand(5, 2), [0, 0, 1, 1, 2], ["a", "b", "a $x$ <b>"], torch.rand(2)),
}


SLOW = ("pair", "time", "attention")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in DRAWN])
def test_pictures_are_written_and_readable(name, tmp_path):
    figure = DRAWN[name]()
    maps = [axes for axes in figure.axes if axes.get_images()]
    norms = {(image.norm.vmin, image.norm.vmax) for axes in maps for image in axes.get_images() if image.norm.scaled()}
    assert name == "gallery" or len(norms) >= 1
    if name == "gallery":
        save_picture(figure, tmp_path / "a.svg")
        assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
        assert "a $x$ &lt;b&gt;" in (tmp_path / "a.svg").read_text()
    save_picture(figure, tmp_path / "deep" / "a.png")
    with Image.open(tmp_path / "deep" / "a.png") as picture:
        assert picture.width > 600 and len(set(picture.convert("L").tobytes())) > 20


@pytest.mark.parametrize(
    ("name", "drawn", "count"),
    [
        ("a.mp4", lambda: films.film_of_attention(recording("within")), 3),
        pytest.param("b.gif", lambda: films.film_of_maps(recording()), 2, marks=pytest.mark.slow),
        pytest.param("c.mp4", lambda: films.film_of_time(recording()), 3, marks=pytest.mark.slow),
        pytest.param("d.mp4", lambda: films.film_of_pairs(recording(), 0, 2), 3, marks=pytest.mark.slow),
        pytest.param("e.mp4", lambda: films.film_of_task(recording(), [0, 1], ["1", "2"]), 3, marks=pytest.mark.slow),
    ],
)
def test_films_have_a_frame_per_step(name, drawn, count, tmp_path):
    save_film(drawn(), tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        assert sum(1 for _ in container.decode(video=0)) == count


@pytest.mark.parametrize(("name", "save"), [("a.bmp", save_picture), ("a", save_picture), ("a.png", save_film)])
def test_other_endings_are_refused(name, save, tmp_path):
    with pytest.raises(DmgalError, match="in this format"):
        save([] if save is save_film else DRAWN["gallery"](), tmp_path / name)


def test_unwritable_paths_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DmgalError, match="cannot be written"):
        save_picture(DRAWN["gallery"](), tmp_path / "file" / "a.png")


def test_tasks_without_support_and_frames_that_do_not_exist_are_refused():
    with pytest.raises(DmgalError, match="no support video"):
        figures.task_attention(recording(num_support=0), [], [])
    with pytest.raises(DmgalError, match="1 to 3"):
        figures.pair_maps(recording(), (0, 3), (2, 0))


def test_t_sne_of_few_clips_is_refused():
    with pytest.raises(DmgalError, match="Use --method pca"):
        tsne_plane(torch.zeros(2, 3), torch.zeros(1, 3))


def test_heat_images_are_bright_where_the_heat_is_and_gray_frames_shine_through():
    frames = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)
    frames[1] = 200
    heat = torch.zeros(2, 4, 6)
    heat[:, 1:3, 3:] = 5.0
    images = drawing.heat_images(frames, heat)
    assert images.shape == frames.shape and images.dtype == torch.uint8
    darkest, brightest = (colormaps[drawing.HEAT](value)[:3] for value in (0.0, 1.0))
    for image, gray in zip(images, (0, 200), strict=True):
        for pixel, color in ((image[:, -1, 0], darkest), (image[:, 20, 50], brightest)):
            expected = [0.62 * 255 * value + 0.38 * gray for value in color]
            assert pixel.tolist() == pytest.approx(expected, abs=1)


def test_color_scale_includes_zero_and_survives_equal_values():
    scale = drawing.limits(torch.full((4,), 2.0))
    assert isinstance(scale, Normalize) and (scale.vmin, scale.vmax) == (0.0, 2.0)
    assert drawing.limits(torch.zeros(4)).vmax == 1.0


def test_principal_plane_keeps_distances_within_a_plane():
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(6, 2, generator=generator) @ torch.linalg.qr(torch.randn(9, 2, generator=generator))[0].T
    points, others = principal_plane(flat[:5], flat[5:])
    torch.testing.assert_close(torch.cdist(points, others), torch.cdist(flat[:5], flat[5:]), rtol=1e-4, atol=1e-4)
    assert principal_plane(flat[:1], flat[1:])[1].shape == (5, 2)
    vectors = state_vectors({"a": 7 * flat[:, None], "n": torch.arange(6), "b": flat})
    assert vectors.shape == (6, 18)
    torch.testing.assert_close(vectors[:, :9], vectors[:, 9:])
