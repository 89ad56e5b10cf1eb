"""View on a scene: background, camera, light, blur and compression, and the drawing of layers through it.

All of it is drawn independently of the motion, and its changes over time are as likely as their reversals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .curves import Array
from .layers import Layer, apply, compose, frames
from .textures import Image, Texture
from .things import ThingLook, thing

BACKGROUND_PIXELS = 256
FRACTION_BITS = 4  # of a pixel, in OpenCV's drawing functions
OPAQUE = 0.98


@dataclass(frozen=True)
class View:
    """How a clip is seen. Values over time are functions of the clip's own time, so that any number of frames works.

    Args:
        background: texture behind everything.
        props: still things in the background, their look, place, size and distance.
        movers: things that move without meaning: their look, place, velocity and way of moving.
        zoom, pan, tilt: camera at the middle of the clip, and their changes over it.
        shake: amplitude, frequencies and phases of a shaking camera.
        light: gain, contrast, color cast, flicker, and the strength and direction of a moving shade.
        blur: standard deviation in shares of the picture's height.
        coarse: share of the resolution that is kept.
        noise: standard deviation of the pixels' noise.
        quality: of JPEG compression, or 0 for none.
        steps: number of different frames of a clip at a low frame rate, or 0.
        exposure: share of the clip during which one frame is exposed.
        begin, end: the seen part of the motion.
    """

    background: Texture
    props: tuple[tuple[ThingLook, Array], ...]
    movers: tuple[tuple[ThingLook, Array], ...]
    zoom: Array
    pan: Array
    tilt: Array
    shake: Array
    light: Array
    cast: Array
    blur: float
    coarse: float
    noise: float
    quality: int
    steps: int
    exposure: float
    begin: float
    end: float

    @staticmethod
    def draw(rng: np.random.Generator) -> View:
        """Draw a view."""
        u = rng.uniform

        def some(probability: float, value: float, otherwise: float = 0.0) -> float:
            return value if rng.random() < probability else otherwise

        moving, zooming, shaking, tilting = (rng.random() < p for p in (0.45, 0.35, 0.4, 0.3))
        props = tuple((ThingLook.draw(rng), u([-1.2, -1.2, 0.4], [1.2, 1.2, 1.5])) for _ in range(rng.integers(0, 4)))
        movers = tuple(
            (ThingLook.draw(rng), u([-1.1, -1.1, -0.5, -0.5, 0.15, 0.0], [1.1, 1.1, 0.5, 0.5, 0.5, 1.0]))
            for _ in range(int(some(0.3, float(rng.integers(1, 3)))))
        )
        return View(
            background=Texture.draw(rng, BACKGROUND_PIXELS),
            props=props,
            movers=movers,
            zoom=np.array([u(0.85, 1.1), u(-0.25, 0.25) * zooming]),
            pan=np.concatenate((u(-0.08, 0.08, 2), u(-0.3, 0.3, 2) * moving)),
            tilt=np.array([rng.normal(0, 0.04), rng.normal(0, 0.1) * tilting]),
            shake=np.concatenate((u(0.005, 0.03, 2) * shaking, u(1, 5, 2), u(0, 2 * math.pi, 2))),
            light=np.array(
                [u(0.65, 1.2), u(0.7, 1.25), some(0.4, u(0, 0.08)), some(0.4, u(0.1, 0.5)), u(0, 2 * math.pi)]
            ),
            cast=rng.normal(0, 0.06, 3),
            blur=some(0.35, u(0.003, 0.016)),
            coarse=some(0.25, u(0.4, 0.8), 1.0),
            noise=some(0.6, u(1, 8)),
            quality=int(some(0.35, u(12, 60))),
            steps=int(some(0.15, float(rng.integers(4, 8)))),
            exposure=some(0.2, u(0.02, 0.05)),
            begin=u(0, 0.08),
            end=1 - u(0, 0.08),
        )

    def times(self, frames: int) -> Array:
        """Return the times of the frames, ``(T, S)``: S moments of the exposure of each, from 0 to 1."""
        times = np.linspace(0, 1, frames)
        if self.steps:
            times = np.round((times - 0.5) * self.steps) / self.steps + 0.5
        moments = np.array([-0.5, 0.5]) * self.exposure if self.exposure else np.zeros(1)
        return (times[:, None] + moments).clip(0, 1)

    def seen(self, times: Array) -> Array:
        """Return the times of the motion at times of the clip. Its very start and end may not be seen."""
        return self.begin + (self.end - self.begin) * times

    def camera(self, times: Array) -> Array:
        """Return the maps ``(T, 2, 3)`` from world coordinates to the picture's, both from -1 to 1."""
        off = times - 0.5
        zoom = self.zoom[0] * np.exp(self.zoom[1] * off)
        shaken = self.shake[:2] * np.sin(2 * math.pi * self.shake[2:4] * times[:, None] + self.shake[4:])
        center = self.pan[:2] + self.pan[2:] * off[:, None] + shaken
        return frames(center, self.tilt[0] + self.tilt[1] * off, zoom, zoom)

    def surroundings(self, times: Array) -> list[Layer]:
        """Return the layers of the things that belong to the background."""
        still = np.zeros_like(times)
        layers: list[Layer] = []
        for k, (look, place) in enumerate(self.props):
            layers += thing(
                look, {"x": still + place[0], "y": still + place[1], "size": still + place[2], "depth": still + 90 - k}
            )
        for k, (look, move) in enumerate(self.movers):
            off = times - 0.5
            sway = np.sin(2 * math.pi * (1.5 * off + move[5])) if move[5] < 0.5 else 2 * off
            x, y = move[0] + move[2] * sway, move[1] + move[3] * sway
            layers += thing(look, {"x": x, "y": y, "size": still + move[4], "depth": still + 40 - k})
        return layers


def film(layers: list[Layer], view: View, times: Array, pixels: int, rng: np.random.Generator) -> Image:
    """Return the frames of layers seen through a view, ``(T, pixels, pixels, 3)``.

    Args:
        layers: of the scene.
        view: camera and light.
        times: ``(T, S)`` as of `View.times`. The layers are at all of them.
        pixels: height and width.
        rng: for the noise of the pixels.
    """
    exposures, times = times.shape[1], times.ravel()
    canvas = pixels if pixels >= 96 else 2 * pixels  # small pictures are drawn larger, for smooth edges
    camera = view.camera(times)
    to_pixels = np.array([[canvas / 2, 0, canvas / 2 - 0.5], [0, canvas / 2, canvas / 2 - 0.5]])
    maps = compose(to_pixels, camera)
    layers = sorted(view.surroundings(times) + layers, key=lambda layer: -layer.depth.mean())
    depths = np.stack([layer.depth for layer in layers])
    order = np.argsort(-depths, axis=0, kind="stable")
    corners = [np.round(apply(maps, layer.points) * 2**FRACTION_BITS).astype(np.int32) for layer in layers]
    colors = [layer.color.tolist() for layer in layers]
    paints = [_Paint.of(layer, corner, maps, canvas) for layer, corner in zip(layers, corners, strict=True)]
    backdrop = compose(compose(maps, np.array([[1.7, 0, 0.0], [0, 1.7, 0.0]])), _unit_square(view.background))
    pictures = np.empty((len(times), pixels, pixels, 3), np.uint8)
    for t in range(len(times)):
        picture = _warped(view.background, backdrop[t], (canvas, canvas))
        for k in order[:, t]:
            paint = paints[k]
            if paint is None:
                cv2.fillPoly(picture, [corners[k][t]], colors[k], cv2.LINE_AA, FRACTION_BITS)
            else:
                paint.draw(picture, t)
        pictures[t] = _developed(picture, view, pixels)
    if exposures > 1:
        pictures = pictures.reshape(-1, exposures, *pictures.shape[1:]).mean(axis=1).astype(np.uint8)
    return _lit(pictures, view, rng)


def _unit_square(texture: Texture) -> Array:
    """Return the map from the texture's pixels to the square from -1 to 1."""
    half = texture.size / 2
    return np.array([[1 / half, 0, (0.5 - half) / half], [0, 1 / half, (0.5 - half) / half]])


def _warped(texture: Texture, frame: Array, shape: tuple[int, int]) -> Image:
    size, flags = (shape[1], shape[0]), cv2.INTER_LINEAR
    return np.asarray(cv2.warpAffine(texture.image, frame, size, flags=flags, borderMode=cv2.BORDER_REFLECT), np.uint8)


@dataclass(frozen=True)
class _Paint:
    """A polygon with a texture or with partial opacity. All arrays start with the time."""

    layer: Layer
    corners: NDArray[np.int32]
    low: NDArray[np.int32]
    high: NDArray[np.int32]
    frame: Array | None

    @staticmethod
    def of(layer: Layer, corners: NDArray[np.int32], maps: Array, canvas: int) -> _Paint | None:
        """Return the paint of a layer, with its bounds in the picture, or None if the layer has one opaque color."""
        if layer.texture is None and layer.opacity is None:
            return None
        low = np.maximum((corners.min(axis=1) >> FRACTION_BITS) - 1, 0)
        high = np.minimum((corners.max(axis=1) >> FRACTION_BITS) + 2, canvas)
        frame = None
        if layer.texture is not None and layer.frame is not None:
            frame = compose(compose(maps, layer.frame), _unit_square(layer.texture))
            frame[:, :, 2] -= low
        return _Paint(layer, corners - (low[:, None] << FRACTION_BITS), low, high, frame)

    def draw(self, picture: Image, t: int) -> None:
        """Draw the polygon at time ``t``."""
        opacity = 1.0 if self.layer.opacity is None else float(self.layer.opacity[t])
        (left, top), (right, bottom) = self.low[t].tolist(), self.high[t].tolist()
        shape = bottom - top, right - left
        if min(shape) <= 0 or opacity <= 1 - OPAQUE:
            return
        mask = np.zeros(shape, np.uint8)
        cv2.fillPoly(mask, [self.corners[t]], round(255 * opacity), cv2.LINE_8, FRACTION_BITS)
        if self.layer.texture is None or self.frame is None:
            paint = np.empty((*shape, 3), np.uint8)
            paint[:] = self.layer.color.clip(0, 255)
        else:
            paint = _warped(self.layer.texture, self.frame[t], shape)
        part = picture[top:bottom, left:right]
        if opacity >= OPAQUE:
            cv2.copyTo(paint, mask, part)
        else:
            share = mask[..., None].astype(np.float32) / 255
            part[:] = part + share * (paint - part.astype(np.float32))


def _developed(picture: Image, view: View, pixels: int) -> Image:
    small = cv2.resize(picture, (pixels, pixels), interpolation=cv2.INTER_AREA) if len(picture) != pixels else picture
    if view.coarse < 1:
        coarse = max(8, round(view.coarse * pixels))
        small = cv2.resize(cv2.resize(small, (coarse, coarse), interpolation=cv2.INTER_AREA), (pixels, pixels))
    if view.blur:
        small = cv2.GaussianBlur(small, (0, 0), view.blur * pixels)
    return np.asarray(small, np.uint8)


def _lit(pictures: Image, view: View, rng: np.random.Generator) -> Image:
    """Return the frames after light, noise and compression."""
    gain, contrast, flicker, shade, direction = view.light
    pixels = pictures.shape[1]
    axis = np.linspace(-1, 1, pixels)
    ramp = 1 + shade * (math.cos(direction) * axis[None, :] + math.sin(direction) * axis[:, None]) / 1.5
    light = (gain * contrast * ramp[..., None] * (1 + view.cast)).astype(np.float32)
    flickers = 1 + flicker * rng.standard_normal(len(pictures))
    grain = rng.standard_normal((pixels, pixels, 1), dtype=np.float32) * np.float32(view.noise)
    grain = np.repeat(grain + np.float32(118 * gain * (1 - contrast)), 3, axis=2)
    grains = [np.ascontiguousarray(np.rot90(grain, turn)) for turn in range(4)]  # for other noise in the next frames
    for t in range(len(pictures)):
        lit = cv2.multiply(pictures[t], light, scale=flickers[t], dtype=cv2.CV_32F)
        pictures[t] = cv2.add(lit, grains[t % 4], dtype=cv2.CV_8U)
        if view.quality:
            _, code = cv2.imencode(".jpg", pictures[t], [cv2.IMWRITE_JPEG_QUALITY, view.quality])
            pictures[t] = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return pictures
