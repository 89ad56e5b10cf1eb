"""Motions of two bodies that meet, touch, follow and hand things over."""

from __future__ import annotations

from ..stage.curves import Channels, Curve, beat, bump, flight, plateau, ramp, swing, time
from ..stage.registry import alone, both, pair
from ..stage.scenes import Actors, Item


def stepping(advance: Curve, active: Curve | float = 1.0, cycles: float = 2.0, stride: float = 0.42) -> Channels:
    """Return the channels of a body that walks while it is active."""
    step = swing(cycles) * active
    return {
        "advance": advance,
        "leg_l": stride * step,
        "leg_r": -stride * step,
        "knee_l": 0.05 + 0.5 * beat(cycles, 0.25) * active,
        "knee_r": 0.05 + 0.5 * beat(cycles, 0.75) * active,
        "arm_l": -0.35 * step,
        "arm_r": 0.35 * step,
    }


def come(distance: float, end: float = 0.45) -> Channels:
    """Return the channels of a body that comes nearer and stops."""
    return stepping(distance * ramp(0.0, end), 1 - ramp(end - 0.15, end))


CLOSE, FAR = 0.62, 1.35
STRUCK: Channels = {
    "advance": -0.18 * ramp(0.45, 0.7),
    "lean": -0.5 * bump(0.45, 0.95),
    "leg_r": -0.5 * bump(0.45, 0.9),
}
HELD_OUT = plateau(0.15, 0.4, 0.7, 0.95)

ENCOUNTERS = (
    pair("two_approach", "two_step_apart", Actors(stepping(0.32 * time), stepping(0.32 * time), FAR), verb="approach"),
    alone("two_meet_and_part", Actors(stepping(0.3 * bump(0, 1)), stepping(0.3 * bump(0, 1)), FAR), verb="meet"),
    alone("two_pass_by", Actors(stepping(1.2 * time), stepping(1.2 * time), 1.5), verb="pass_by"),
    alone(
        "two_turn_away",
        Actors(
            stepping(-0.35 * ramp(0.3, 1.0)) | {"heading": 3.1 * ramp(0.05, 0.35)},
            stepping(-0.35 * ramp(0.3, 1.0)) | {"heading": 3.1 * ramp(0.05, 0.35)},
            0.8,
        ),
        verb="turn_away",
    ),
    pair(
        "two_follow",
        "two_follow_backward",
        Actors(stepping(1.0 * (time - 0.5)), stepping(1.0 * (time - 0.5), cycles=2.1), 0.8, same_way=True),
        verb="follow",
    ),
    pair(
        "two_chase",
        "two_chase_backward",
        Actors(
            stepping(1.6 * time - 0.9, cycles=3.0, stride=0.8) | {"lean": 0.3},
            stepping(1.3 * time - 0.7, cycles=3.0, stride=0.8) | {"lean": 0.3},
            0.9,
            same_way=True,
        ),
        verb="chase",
    ),
    pair(
        "two_lead_by_hand",
        "two_lead_by_hand_backward",
        Actors(
            stepping(0.8 * (time - 0.5)) | {"arm_r": 1.0, "elbow_r": 0.0},
            stepping(0.8 * (time - 0.5)) | {"arm_r": -0.9, "elbow_r": 0.0},
            0.62,
            same_way=True,
        ),
        verb="lead",
    ),
    pair(
        "two_drag",
        "two_drag_backward",
        Actors(
            {"advance": 0.6 * (0.5 - time), "roll": 1.35, "out_l": 0.4, **both(arm=2.9, elbow=0.0)},
            stepping(0.6 * (time - 0.5) * -1.0) | {"lean": 0.8, **both(arm=0.9, elbow=0.0)},
            1.0,
            same_way=False,
        ),
        verb="drag",
    ),
    alone(
        "two_shake_hands",
        Actors(
            {"arm_r": HELD_OUT * (1.0 + 0.2 * swing(4.0)), "elbow_r": 0.2 + 0.3 * HELD_OUT},
            {"arm_r": HELD_OUT * (1.0 + 0.2 * swing(4.0)), "elbow_r": 0.2 + 0.3 * HELD_OUT},
            CLOSE,
        ),
        verb="shake_hands",
    ),
    pair(
        "two_hug",
        "two_end_hug",
        Actors(
            come(0.3, 0.6) | both(arm=1.35 * ramp(0.25, 0.6), elbow=0.2 + 0.6 * ramp(0.6, 0.85)),
            come(0.3, 0.6) | both(arm=1.15 * ramp(0.25, 0.6), elbow=0.2 + 0.6 * ramp(0.6, 0.85)),
            1.15,
        ),
        verb="hug",
    ),
    alone(
        "two_kick",
        Actors(
            {"lean": -0.35 * bump(0.25, 0.75), "leg_r": 1.5 * bump(0.25, 0.7), "knee_r": 0.6 * bump(0.15, 0.5)},
            STRUCK,
            0.8,
        ),
        verb="kick_other",
    ),
    alone(
        "two_punch",
        Actors(
            {
                "lean": 0.25 * bump(0.25, 0.7),
                "arm_r": 0.2 + 1.35 * bump(0.3, 0.65),
                "elbow_r": 2.0 - 1.9 * bump(0.3, 0.65),
                "advance": 0.08 * bump(0.25, 0.7),
            },
            STRUCK | {"nod": -0.6 * bump(0.45, 0.9)},
            0.66,
        ),
        verb="punch_other",
    ),
    alone(
        "two_fight",
        Actors(
            {
                "arm_r": 0.2 + 1.3 * beat(2.3),
                "elbow_r": 2.0 - 1.9 * beat(2.3),
                "arm_l": 0.2 + 1.3 * beat(2.3, 0.5),
                "elbow_l": 2.0 - 1.9 * beat(2.3, 0.5),
                "advance": 0.05 * swing(1.1),
            },
            {
                "arm_r": 0.2 + 1.3 * beat(2.0, 0.3),
                "elbow_r": 2.0 - 1.9 * beat(2.0, 0.3),
                "arm_l": 0.2 + 1.3 * beat(2.0, 0.8),
                "elbow_l": 2.0 - 1.9 * beat(2.0, 0.8),
                "advance": 0.05 * swing(1.1, 0.5),
            },
            0.68,
        ),
        verb="fight",
    ),
    alone(
        "two_push",
        Actors(
            {
                "lean": 0.35 * bump(0.2, 0.8),
                "advance": 0.08 * bump(0.2, 0.9),
                **both(arm=1.5 * plateau(0.15, 0.4, 0.65, 0.9), elbow=1.2 - 1.1 * bump(0.25, 0.7)),
            },
            {
                "advance": -0.35 * ramp(0.4, 0.85),
                "lean": -0.35 * bump(0.4, 0.9),
                "leg_r": -0.6 * bump(0.45, 0.8),
                "leg_l": 0.4 * bump(0.5, 0.95),
            },
            0.6,
        ),
        verb="push_other",
    ),
    pair(
        "two_pull",
        "two_shove_along",
        Actors(
            stepping(-0.4 * ramp(0.2, 0.95), cycles=1.5) | {"lean": -0.3, **both(arm=1.4, elbow=0.1)},
            stepping(0.4 * ramp(0.2, 0.95), cycles=1.5) | {"lean": 0.4, **both(arm=1.3, elbow=0.1)},
            0.7,
        ),
        verb="pull_other",
    ),
    alone("two_point", Actors({"arm_r": 1.6 * HELD_OUT, "elbow_r": 0.05}, {}, 1.1), verb="point_at"),
    alone(
        "two_wave",
        Actors(
            {"arm_r": 2.4, "elbow_r": 0.5 + 0.7 * swing(2.5)},
            {"arm_r": 2.4, "elbow_r": 0.5 + 0.7 * swing(2.5, 0.5)},
            1.2,
        ),
        verb="wave_to_other",
    ),
    alone(
        "two_high_five",
        Actors(
            {"arm_r": 2.2 * bump(0.15, 0.85), "elbow_r": 0.1}, {"arm_r": 2.2 * bump(0.15, 0.85), "elbow_r": 0.1}, CLOSE
        ),
        verb="high_five",
    ),
    alone("two_bow", Actors({"lean": 1.0 * bump()}, {"lean": 1.0 * bump(0.2, 0.95)}, 1.1), verb="bow_to_other"),
    alone(
        "two_circle",
        Actors(
            {"advance": 0.3 - 0.3 * swing(0.9), "side": 0.3 * swing(0.9, 0.25), **both(arm=1.0)},
            {"advance": 0.3 - 0.3 * swing(0.9), "side": -0.3 * swing(0.9, 0.25), **both(arm=1.0)},
            0.9,
        ),
        verb="circle_other",
    ),
    alone(
        "two_dance",
        Actors(
            {"tilt": 0.25 * swing(1.7), "advance": 0.08 * swing(0.85), **both(arm=1.3, elbow=0.2)},
            {"tilt": -0.25 * swing(1.7), "advance": -0.08 * swing(0.85), **both(arm=1.3, elbow=0.2)},
            CLOSE,
        ),
        verb="dance_together",
    ),
    alone(
        "two_seesaw",
        Actors(
            {**both(leg=1.1 * beat(1.4), knee=2.0 * beat(1.4), arm=1.2)},
            {**both(leg=1.1 * beat(1.4, 0.5), knee=2.0 * beat(1.4, 0.5), arm=1.2)},
            0.66,
        ),
        verb="seesaw",
    ),
    alone(
        "two_throw_ball",
        Actors(
            {"arm_r": -1.6 + 3.1 * ramp(0.1, 0.4), "elbow_r": 0.4},
            both(arm=1.3 * ramp(0.35, 0.7), elbow=0.3),
            1.3,
            items=(
                Item(
                    {
                        "x": -0.45 + 0.85 * ramp(0.28, 0.75),
                        "y": -0.05 - 0.35 * flight(0.28, 0.75),
                        "size": 0.4,
                        "depth": -1.0,
                    },
                    held=1 - ramp(0.26, 0.34),
                ),
            ),
        ),
        verb="throw_to",
    ),
    alone(
        "two_hand_over",
        Actors(
            {"arm_r": 1.3 * plateau(0.05, 0.4, 0.6, 0.9), "elbow_r": 0.3},
            {"arm_r": 1.3 * plateau(0.05, 0.4, 0.6, 0.9), "elbow_r": 0.3},
            0.75,
            items=(
                Item({"size": 0.4, "depth": -1.0, "opacity": 1 - ramp(0.49, 0.53)}, held=1.0),
                Item({"size": 0.4, "depth": -1.0, "opacity": ramp(0.48, 0.52)}, held=1.0, joint="other_hand_r"),
            ),
        ),
        verb="hand_over",
    ),
    pair(
        "two_carry",
        "two_carry_backward",
        Actors(
            stepping(0.8 * (time - 0.5)) | both(arm=0.8, elbow=0.6),
            stepping(0.8 * (time - 0.5), cycles=2.1) | both(arm=-0.5, elbow=0.3),
            0.95,
            same_way=True,
            items=(Item({"x": 1.0 * (time - 0.5), "y": 0.05, "wide": 2.6, "tall": 0.5, "depth": -1.0}, part="sheet"),),
        ),
        verb="carry_together",
    ),
    pair(
        "two_help_up",
        "two_lay_down",
        Actors(
            {"lean": 0.7 * (1 - ramp()), **both(arm=1.0, elbow=0.1)},
            {"roll": -1.3 + 1.3 * ramp(0.15, 0.9), "arm_r": 1.5, "elbow_r": 0.1, "leg_l": 0.5 * bump()},
            0.75,
        ),
        verb="help_up",
    ),
)
