"""Gestures of one body: motions of the arms, with and without things."""

from __future__ import annotations

from ..stage.curves import bump, flight, positive, ramp, swing, turns
from ..stage.registry import FRONT, alone, both, pair, solo
from ..stage.scenes import Actors, Item

GESTURES = (
    alone("wave_one_arm", solo(heading=FRONT, out_r=2.3, fore_r=0.3 + 0.6 * swing(2.6), elbow_r=0.0)),
    alone("wave_both_arms", solo(heading=FRONT, **both(out=2.2 + 0.6 * swing(2.0)))),
    alone("flap_arms", solo(heading=FRONT, **both(out=1.1 + 0.8 * swing(1.8), fore=-0.2 * swing(1.8, 0.2)))),
    alone("clap", solo(heading=FRONT * 0.55, **both(arm=1.15, elbow=0.5, out=0.32 + 0.45 * swing(2.8), fore=-0.35))),
    alone("beckon", solo(arm_r=1.1, elbow_r=0.9 + 0.9 * swing(2.3))),
    pair("point_out", "drop_arm", solo(arm_r=1.6 * ramp(0.15, 0.6), elbow_r=0.05)),
    pair("raise_both_arms", "lower_both_arms", solo(heading=FRONT, **both(out=0.1 + 2.8 * ramp(0.1, 0.8)))),
    pair(
        "spread_arms",
        "fold_arms",
        solo(
            heading=FRONT,
            **both(arm=1.2 - 1.1 * ramp(), elbow=1.4 - 1.3 * ramp(), out=0.1 + 1.45 * ramp(), fore=-1.2 + 1.2 * ramp()),
        ),
    ),
    pair(
        "lift_to_mouth",
        "lower_from_mouth",
        Actors(
            {
                "arm_r": 0.35 + 0.6 * ramp(0.15, 0.6),
                "elbow_r": 0.4 + 1.9 * ramp(0.15, 0.6),
                "nod": -0.3 * ramp(0.5, 0.8),
            },
            items=(Item({"size": 0.3, "depth": -1.0, "angle": -1.0 * ramp(0.5, 0.8)}, held=1.0),),
        ),
    ),
    alone("scratch_head", solo(arm_r=2.0, out_r=0.9, elbow_r=1.5 + 0.3 * swing(3.5), fore_r=-0.6)),
    alone(
        "punch",
        solo(
            leg_l=0.3,
            leg_r=-0.3,
            lean=0.2 * bump(0.3, 0.75),
            arm_r=0.2 + 1.35 * bump(0.3, 0.75),
            elbow_r=2.1 - 2.0 * bump(0.3, 0.75),
            arm_l=0.5,
            elbow_l=1.9,
        ),
    ),
    alone(
        "box",
        solo(
            leg_l=0.25,
            leg_r=-0.25,
            arm_l=0.2 + 1.3 * positive(swing(2.4)),
            elbow_l=2.1 - 2.0 * positive(swing(2.4)),
            arm_r=0.2 + 1.3 * positive(-swing(2.4)),
            elbow_r=2.1 - 2.0 * positive(-swing(2.4)),
        ),
    ),
    pair(
        "fling",
        "wind_up",
        Actors(
            {
                "lean": 0.4 * ramp(0.35, 0.7) - 0.2,
                "arm_r": -2.4 + 3.9 * ramp(0.3, 0.7),
                "elbow_r": 0.9 - 0.8 * ramp(0.35, 0.6),
                "arm_l": 0.5,
                "leg_l": 0.4,
                "leg_r": -0.35,
            },
            items=(
                Item(
                    {"x": 0.2 + 1.6 * ramp(0.5, 1.0), "y": -0.45 - 0.2 * flight(0.5, 1.0), "size": 0.35, "depth": -1.0},
                    held=1.0 - ramp(0.49, 0.56),
                ),
            ),
        ),
    ),
    pair(
        "swing_bat",
        "swing_bat_back",
        solo(
            lean=0.15,
            twist=0.9 - 1.8 * ramp(0.3, 0.7),
            heading=0.3,
            leg_l=0.3,
            leg_r=-0.3,
            **both(arm=2.2 - 1.3 * ramp(0.3, 0.7), elbow=0.4, fore=0.9 - 1.8 * ramp(0.3, 0.7)),
        ),
    ),
    alone(
        "hammer",
        Actors(
            {"arm_r": 1.2 + 0.9 * swing(2.0), "elbow_r": 0.5 + 0.4 * swing(2.0), "lean": 0.2},
            items=(Item({"size": 0.35, "depth": -1.0}, held=1.0),),
        ),
    ),
    alone(
        "saw",
        solo(lean=0.6, leg_l=0.3, leg_r=-0.3, arm_r=0.7 + 0.6 * swing(2.2), elbow_r=0.9 - 0.6 * swing(2.2), arm_l=1.0),
    ),
    alone("scrub_wall", solo(arm_r=1.7 + 0.4 * swing(2.0), out_r=0.1 + 0.2 * swing(2.0, 0.25), elbow_r=0.2)),
    pair("circle_arms", "circle_arms_back", solo(**both(arm=2.0 * turns, elbow=0.0, out=0.15))),
    alone(
        "strum",
        solo(
            heading=FRONT, arm_l=0.6, elbow_l=1.6, fore_l=0.4, arm_r=0.3, elbow_r=1.2 + 0.35 * swing(3.5), fore_r=-0.8
        ),
    ),
)
