"""Exercises of one body: jumps, kicks, turns and sports."""

from __future__ import annotations

from ..stage.curves import beat, bump, hop, positive, ramp, swing, time, turns
from ..stage.registry import FRONT, alone, both, pair, solo
from ..stage.scenes import Actors, Item

EXERCISES = (
    alone(
        "jump_up",
        solo(
            rise=0.24 * positive(hop(2) - 0.2),
            **both(knee=0.9 - 0.85 * hop(2), leg=0.45 - 0.42 * hop(2), arm=0.9 * hop(2)),
        ),
    ),
    alone(
        "jumping_jacks",
        solo(heading=FRONT, rise=0.07 * hop(3.6), **both(apart=0.08 + 0.5 * beat(1.8), out=0.15 + 2.6 * beat(1.8))),
    ),
    alone(
        "squat",
        solo(lean=0.4 * beat(1.6), **both(leg=1.2 * beat(1.6), knee=2.2 * beat(1.6), arm=1.4 * beat(1.6))),
    ),
    alone(
        "lunge",
        solo(
            advance=0.12 * bump(),
            leg_l=1.1 * bump(),
            knee_l=1.2 * bump(),
            leg_r=-0.5 * bump(),
            knee_r=0.8 * bump(),
            **both(out=0.4),
        ),
    ),
    alone(
        "kick",
        solo(
            lean=-0.3 * bump(0.25, 0.8),
            leg_r=1.6 * bump(0.3, 0.8) - 0.5 * bump(0.05, 0.4),
            knee_r=0.05 + 0.9 * bump(0.1, 0.5),
            arm_l=0.8 * bump(),
            arm_r=-0.6 * bump(),
        ),
    ),
    alone(
        "kick_fast", solo(lean=-0.15, leg_r=0.5 + 0.7 * swing(2.0), knee_r=0.5 - 0.5 * swing(2.0, 0.1), **both(out=0.5))
    ),
    alone("turn_round", solo(heading=1.0 * turns, **both(out=0.4))),
    alone("rock_sideways", solo(heading=FRONT, roll=0.35 * swing(1.3), **both(out=0.3))),
    alone("sway", solo(heading=FRONT, tilt=0.4 * swing(1.6), side=0.05 * swing(1.6, 0.2), **both(out=2.7))),
    alone("twist_trunk", solo(heading=FRONT * 0.6, twist=0.9 * swing(1.7), **both(out=1.4))),
    alone(
        "dance",
        solo(
            heading=FRONT,
            tilt=0.25 * swing(1.6),
            side=0.1 * swing(0.8),
            out_l=0.9 + 0.8 * swing(1.6),
            out_r=0.9 - 0.8 * swing(1.6),
            knee_l=0.5 * beat(1.6),
            knee_r=0.5 * beat(1.6, 0.5),
            leg_l=0.3 * beat(1.6),
            leg_r=0.3 * beat(1.6, 0.5),
        ),
    ),
    alone(
        "cartwheel",
        solo(heading=FRONT, side=1.2 * (time - 0.5), roll=6.28 * ramp(0.1, 0.9), **both(out=2.6, apart=0.6, fore=0.0)),
    ),
    pair(
        "roll_forward",
        "roll_backward",
        solo(
            advance=0.8 * (time - 0.5),
            roll=6.28 * ramp(0.1, 0.9),
            lean=1.6,
            nod=0.7,
            **both(leg=1.6, knee=2.3, arm=1.2, elbow=1.0),
        ),
    ),
    alone(
        "push_ups",
        solo(
            roll=1.42 - 0.12 * beat(1.8),
            **both(arm=1.5, elbow=0.0, knee=0.0, leg=0.0) | both(arm=1.5 - 0.9 * beat(1.8), elbow=1.5 * beat(1.8)),
        ),
    ),
    alone(
        "sit_ups", solo(roll=-1.5, lean=1.3 * beat(1.5), **both(leg=0.7, knee=1.3, arm=0.6, elbow=1.2) | {"nod": 0.2})
    ),
    alone(
        "row",
        solo(
            roll=0.0,
            lean=0.35 * swing(1.7),
            **both(leg=1.45, knee=0.5 + 0.4 * swing(1.7), arm=1.2 + 0.2 * swing(1.7), elbow=0.8 - 0.7 * swing(1.7)),
        ),
    ),
    pair(
        "climb_up",
        "climb_down",
        Actors(
            {
                "rise": 0.1 + 0.6 * time,
                "leg_l": 0.7 + 0.5 * swing(1.7),
                "leg_r": 0.7 - 0.5 * swing(1.7),
                "knee_l": 1.2 + 0.8 * swing(1.7),
                "knee_r": 1.2 - 0.8 * swing(1.7),
                "arm_l": 2.5 - 0.45 * swing(1.7),
                "arm_r": 2.5 + 0.45 * swing(1.7),
            },
            items=(Item({"x": 0.3, "wide": 0.3, "tall": 9.0, "depth": 1.0}, part="sheet"),),
        ),
    ),
    pair(
        "swim",
        "swim_back",
        solo(
            advance=1.0 * (time - 0.5),
            rise=0.35,
            roll=1.45,
            arm_l=3.0 + 1.7 * turns,
            arm_r=1.7 * turns,
            elbow_l=0.1,
            elbow_r=0.1,
            leg_l=0.25 * swing(4),
            leg_r=-0.25 * swing(4),
        ),
    ),
    alone(
        "swing_arms_and_bounce",
        solo(**both(arm=0.9 * swing(1.9), elbow=0.2, knee=0.5 * beat(3.8), leg=0.25 * beat(3.8))),
    ),
)
