"""Bodies of limbs: their build and clothes, and their joints and layers for given angles.

Limbs are pendulums in three dimensions: forward, to the left and down, relative to the body. All lengths are shares of
the body's height. The lowest joint always stands on the ground unless the body rises from it, so that squatting, lying
and turning over need no heights of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .curves import Array
from .layers import Layer, capsules, ellipses, frames
from .textures import Texture, color, skin_color

SIDES = (("l", 1.0), ("r", -1.0))
AT_REST = {
    "advance": 0.0, "side": 0.0, "rise": 0.0, "heading": 0.0, "roll": 0.0,
    "lean": 0.03, "tilt": 0.0, "twist": 0.0, "nod": 0.0,
    "arm_l": 0.05, "arm_r": 0.05, "out_l": 0.12, "out_r": 0.12,
    "elbow_l": 0.2, "elbow_r": 0.2, "fore_l": 0.0, "fore_r": 0.0,
    "leg_l": 0.03, "leg_r": 0.03, "apart_l": 0.06, "apart_r": 0.06, "knee_l": 0.04, "knee_r": 0.04,
}  # fmt: skip
"""Channels of a body and their values at rest.

``advance`` and ``side`` move the body in heights, ``rise`` lifts it, ``heading`` turns it about the vertical and
``roll`` in the picture. ``lean`` bends the trunk forward and ``tilt`` sideways, ``twist`` turns the shoulders. ``arm``
and ``leg`` swing forward, ``out`` and ``apart`` sideways. ``elbow`` bends the forearm forward, ``fore`` sideways, and
``knee`` bends backward.
"""


@dataclass(frozen=True)
class BodyLook:
    """Build and clothes of a body. Lengths are shares of its height."""

    height: float
    trunk: float
    upper_arm: float
    forearm: float
    thigh: float
    shin: float
    head: float
    shoulders: float
    hips: float
    limb: float
    belly: float
    skin: Array
    shirt: Array
    trousers: Array
    shoes: Array
    hair: Array
    pattern: Texture | None
    long_sleeves: bool
    long_trousers: bool
    skirt: float
    hair_length: float

    @staticmethod
    def draw(rng: np.random.Generator) -> BodyLook:
        """Draw a body: a child, an adult or a stylized figure, thin or stout."""
        u = rng.uniform
        child = rng.random() < 0.2
        dressed = Texture.draw(rng, 48)
        return BodyLook(
            height=u(1.1, 1.5),
            trunk=u(0.27, 0.33),
            upper_arm=u(0.15, 0.18),
            forearm=u(0.15, 0.18),
            thigh=u(0.19, 0.23) if child else u(0.22, 0.27),
            shin=u(0.19, 0.23) if child else u(0.22, 0.27),
            head=u(0.09, 0.115) if child else u(0.062, 0.09),
            shoulders=u(0.09, 0.13),
            hips=u(0.04, 0.06),
            limb=u(0.026, 0.046),
            belly=u(0.05, 0.09),
            skin=skin_color(rng),
            shirt=color(rng),
            trousers=color(rng),
            shoes=color(rng),
            hair=color(rng) * 0.6,
            pattern=dressed if rng.random() < 0.5 else None,
            long_sleeves=bool(rng.random() < 0.6),
            long_trousers=bool(rng.random() < 0.75),
            skirt=u(0.5, 1.0) if rng.random() < 0.15 else 0.0,
            hair_length=u(0.3, 1.2),
        )


@dataclass(frozen=True)
class Stand:
    """Position and view of a body.

    Args:
        ground: y of the ground.
        along: position on the axis of the scene, in world units.
        heading: 0 to face along the axis, pi to face back.
        yaw: angle of the axis to the picture.
        pitch: angle of the camera above the horizon.
        depth: added to the order of drawing.
    """

    ground: float = 0.75
    along: float = 0.0
    heading: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.1
    depth: float = 0.0


def body(look: BodyLook, channels: dict[str, Array], stand: Stand) -> tuple[list[Layer], dict[str, Array]]:
    """Return the layers of a body and its joints ``(T, 2)`` in the picture, for channels as in `AT_REST`."""
    times = next(iter(channels.values())).shape
    c = {name: channels.get(name, np.full(times, value)) for name, value in AT_REST.items()}
    joints = _joints(look, c)
    flat, depth = _project(joints, c, look.height, stand)
    width_seen = np.abs(np.sin(stand.yaw + stand.heading + c["heading"]))
    return _layers(look, flat, depth, width_seen, stand.depth), flat


def _direction(swing: Array, out: Array, side: float) -> Array:
    return np.stack((np.sin(swing) * np.cos(out), side * np.sin(out), np.cos(swing) * np.cos(out)), axis=-1)


def _joints(look: BodyLook, c: dict[str, Array]) -> dict[str, Array]:
    """Return the joints relative to the hips, each ``(T, 3)``: forward, left and down."""
    up = np.stack(
        (np.sin(c["lean"]) * np.cos(c["tilt"]), np.sin(c["tilt"]), -np.cos(c["lean"]) * np.cos(c["tilt"])), -1
    )
    head_up = _direction(math.pi - c["lean"] - c["nod"], c["tilt"], 1.0)
    lateral = np.stack((-np.sin(c["twist"]), np.cos(c["twist"]) * np.cos(c["tilt"]), np.sin(c["tilt"])), axis=-1)
    neck = look.trunk * up
    joints = {"hips": 0 * up, "neck": neck, "chin": neck + 0.02 * up, "head": neck + (0.015 + look.head) * head_up}
    joints["crown"] = joints["head"] + look.head * head_up
    for name, side in SIDES:
        shoulder = neck - 0.03 * up + side * look.shoulders * lateral
        arm, out = c[f"arm_{name}"], c[f"out_{name}"]
        elbow = shoulder + look.upper_arm * _direction(arm, out, side)
        forearm = _direction(arm + c[f"elbow_{name}"], out + c[f"fore_{name}"], side)
        wrist = elbow + look.forearm * forearm
        hip = np.broadcast_to([0, side * look.hips, 0], up.shape)
        leg, apart = c[f"leg_{name}"], c[f"apart_{name}"]
        knee = hip + look.thigh * _direction(leg, apart, side)
        ankle = knee + look.shin * _direction(leg - c[f"knee_{name}"], apart, side)
        toe = ankle + 0.09 * _direction(leg - c[f"knee_{name}"] + 1.35, apart, side)
        joints |= {f"shoulder_{name}": shoulder, f"elbow_{name}": elbow, f"wrist_{name}": wrist}
        joints |= {f"hand_{name}": wrist + 0.035 * forearm, f"hip_{name}": hip, f"knee_{name}": knee}
        joints |= {f"ankle_{name}": ankle, f"toe_{name}": toe}
    return joints


def _project(
    joints: dict[str, Array], c: dict[str, Array], height: float, stand: Stand
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the joints in the picture, ``(T, 2)``, and their distance behind the body's center, ``(T,)``."""
    angle = stand.yaw + stand.heading + c["heading"]
    cos, sin = np.cos(angle), np.sin(angle)
    near = {name: p[:, 0] * sin + p[:, 1] * cos for name, p in joints.items()}
    across = {name: p[:, 0] * cos - p[:, 1] * sin for name, p in joints.items()}
    roll_cos, roll_sin = np.cos(c["roll"]), np.sin(c["roll"])
    x = {name: across[name] * roll_cos - p[:, 2] * roll_sin for name, p in joints.items()}
    y = {name: across[name] * roll_sin + p[:, 2] * roll_cos for name, p in joints.items()}
    lowest = np.max(list(y.values()), axis=0)
    forward = stand.along + math.cos(stand.heading) * c["advance"] * height
    sideways = c["side"] * height
    yaw_cos, yaw_sin, pitch = math.cos(stand.yaw), math.sin(stand.yaw), math.sin(stand.pitch)
    place = forward * yaw_cos - sideways * yaw_sin
    toward = forward * yaw_sin + sideways * yaw_cos
    scale = height * (1 + 0.3 * toward).clip(0.3, 2)
    ground = stand.ground + pitch * toward
    flat = {
        name: np.stack(
            (place + scale * x[name], ground + scale * (y[name] - lowest - c["rise"] + pitch * near[name])), axis=-1
        )
        for name in joints
    }
    return flat, {name: -near[name] for name in joints}


def _layers(
    look: BodyLook, p: dict[str, Array], depth: dict[str, Array], width_seen: Array, base: float
) -> list[Layer]:
    size = np.linalg.norm(p["crown"] - p["head"], axis=-1) / look.head
    size = np.maximum(size, 0.85 * look.height * np.ones_like(size))  # of the head when it is seen from above
    limb = look.limb * size
    layers: list[Layer] = []

    def add(points: Array, paint: Array, joint: str, in_front: float = 0.0) -> None:
        layers.append(Layer(points, paint.clip(0, 255), base + 0.1 * depth[joint] - 0.01 * in_front))

    for name, side in SIDES:
        shade = 1.0 if side > 0 else 0.88
        sleeve = look.shirt if look.long_sleeves else look.skin
        trouser = look.trousers if look.long_trousers else look.skin
        ankle, toe, knee = p[f"ankle_{name}"], p[f"toe_{name}"], p[f"knee_{name}"]
        elbow, wrist, hand = p[f"elbow_{name}"], p[f"wrist_{name}"], p[f"hand_{name}"]
        add(capsules(ankle, toe, 0.8 * limb, 0.6 * limb), look.shoes * shade, f"knee_{name}")
        add(capsules(knee, ankle, limb, 0.75 * limb), trouser * shade * 0.94, f"knee_{name}")
        add(capsules(p[f"hip_{name}"], knee, 1.5 * limb, 1.05 * limb), look.trousers * shade, f"knee_{name}", 0.1)
        add(ellipses(hand, 1.1 * limb, 1.1 * limb), look.skin * shade, f"wrist_{name}")
        add(capsules(elbow, wrist, 0.85 * limb, 0.65 * limb), sleeve * shade * 0.92, f"wrist_{name}", 0.1)
        add(capsules(p[f"shoulder_{name}"], elbow, limb, 0.85 * limb), look.shirt * shade * 0.84, f"elbow_{name}", 0.05)
    upper = size * (look.belly + width_seen * max(look.shoulders - look.belly, 0.0))
    lower = size * (0.9 * look.belly + width_seen * 0.25 * look.hips)
    trunk = capsules(p["neck"] * 0.88 + p["hips"] * 0.12, p["hips"], upper, lower)
    middle, spine = (p["neck"] + p["hips"]) / 2, p["neck"] - p["hips"]
    angle = np.arctan2(spine[:, 0], -spine[:, 1])
    frame = frames(middle, angle, size * look.shoulders * 1.4, size * look.trunk * 0.8)
    layers.append(Layer(trunk, look.shirt, base + 0 * limb, look.pattern, frame))
    if look.skirt:
        hem = look.skirt * (p["knee_l"] + p["knee_r"]) / 2 + (1 - look.skirt) * p["hips"]
        add(capsules(p["hips"], hem, 1.1 * lower, 1.5 * lower), look.trousers, "hips", 0.5)
    add(capsules(p["neck"], p["head"], 0.9 * limb, 0.9 * limb), look.skin * 0.9, "neck", -0.2)
    head, up = p["head"], p["crown"] - p["chin"]
    tilt = np.arctan2(up[:, 0], -up[:, 1])
    radius = look.head * size
    add(ellipses(head, 0.8 * radius, radius, tilt), look.skin, "head", 0.2)
    back = np.stack((np.cos(tilt), np.sin(tilt)), axis=-1) * (0.25 * radius)[:, None]
    face = np.sign(p["toe_l"][:, :1] + p["toe_r"][:, :1] - p["ankle_l"][:, :1] - p["ankle_r"][:, :1] + 1e-9)
    crown = head + (p["crown"] - head) * (0.75 - 0.3 * look.hair_length)
    add(
        ellipses(crown - back * face, 0.85 * radius, radius * (0.4 + 0.3 * look.hair_length), tilt),
        look.hair,
        "head",
        0.21,
    )
    return layers
