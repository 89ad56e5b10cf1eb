"""Changes of posture of one body: bending, sitting, falling, lifting and their reversals."""

from __future__ import annotations

from ..stage.curves import bump, flight, plateau, ramp, sin, swing, time, turns
from ..stage.registry import FRONT, alone, both, pair, solo
from ..stage.scenes import Actors, Item

POSTURES = (
    pair("bend_down", "straighten_up", solo(lean=1.55 * ramp(), **both(arm=0.2 + 0.5 * ramp(), knee=0.2 * ramp()))),
    alone("bow", solo(lean=1.3 * bump(), **both(arm=0.05))),
    pair(
        "bend_sideways", "unbend_sideways", solo(heading=FRONT, tilt=0.8 * ramp(), out_r=0.2 + 2.2 * ramp(), out_l=0.2)
    ),
    pair(
        "sit_down",
        "stand_up",
        solo(
            advance=-0.15 * ramp(),
            lean=0.3 * bump(),
            **both(leg=1.5 * ramp(), knee=1.5 * ramp(), arm=0.6 * ramp(), elbow=0.2 + 0.6 * ramp()),
        ),
    ),
    pair(
        "sit_on_floor",
        "get_up_from_floor",
        solo(
            lean=0.25 * bump() - 0.1 * ramp(),
            **both(leg=1.6 * ramp(), knee=2.2 * bump(0.1, 1.1) + 0.15, arm=0.4 * bump() - 0.3 * ramp()),
        ),
    ),
    pair(
        "kneel_down",
        "rise_from_knees",
        solo(leg_l=1.5 * ramp(), knee_l=1.5 * ramp(), leg_r=0.05, knee_r=1.55 * ramp(), lean=0.2 * bump()),
    ),
    pair(
        "fall_forward",
        "rise_from_front",
        solo(roll=1.5 * ramp(0.2, 0.75), **both(arm=1.8 * ramp(0.2, 0.6), elbow=0.3, knee=0.5 * bump(0.05, 0.6))),
    ),
    pair(
        "fall_back",
        "rise_from_back",
        solo(
            roll=-1.5 * ramp(0.2, 0.75),
            **both(arm=1.2 * bump(0.1, 0.7), out=0.2 + 0.8 * ramp(0.2, 0.6), leg=0.4 * bump(0.1, 0.7)),
        ),
    ),
    pair(
        "stretch_up",
        "slump",
        solo(
            lean=0.7 - 0.7 * ramp(),
            nod=0.6 - 0.6 * ramp(),
            **both(arm=0.3 + 2.6 * ramp(), elbow=0.4 - 0.3 * ramp(), leg=0.5 - 0.45 * ramp(), knee=1.0 - 0.95 * ramp()),
        ),
    ),
    pair(
        "pick_from_floor",
        "put_on_floor",
        Actors(
            {"lean": 1.5 * bump(0.05, 0.95), "arm_r": 0.3 + 0.5 * bump(), **both(knee=0.5 * bump(), leg=0.25 * bump())},
            items=(Item({"x": 0.35, "y": 0.64, "size": 0.4, "depth": -1.0}, held=ramp(0.45, 0.53)),),
        ),
    ),
    pair(
        "lift_load",
        "set_load_down",
        Actors(
            {
                "lean": 1.4 - 1.3 * ramp(0.2, 0.8),
                **both(
                    arm=0.9 + 0.3 * ramp(0.2, 0.8),
                    elbow=0.1 + 0.5 * ramp(0.2, 0.8),
                    knee=0.8 - 0.75 * ramp(0.2, 0.8),
                    leg=0.5 - 0.45 * ramp(0.2, 0.8),
                ),
            },
            items=(Item({"size": 0.75, "depth": -1.0}, held=1.0),),
        ),
    ),
    pair(
        "put_on_hat",
        "take_off_hat",
        Actors(
            {"arm_r": 0.4 + 2.1 * plateau(0.0, 0.5, 0.6, 1.2), "elbow_r": 0.5 + 0.9 * ramp(0.0, 0.5)},
            items=(Item({"size": 0.45, "depth": -1.0, "tall": 0.6}, held=1.0),),
        ),
    ),
    pair(
        "jump_down",
        "jump_up_onto",
        solo(
            advance=0.7 * (ramp(0.25, 0.6) - 0.5),
            rise=0.45 - 0.45 * ramp(0.35, 0.65) + 0.12 * flight(0.2, 0.6),
            **both(
                knee=0.9 * bump(0.55, 1.0) + 0.6 * bump(0.0, 0.35),
                leg=0.45 * bump(0.55, 1.0) + 0.4 * bump(0.1, 0.6),
                arm=1.6 * bump(0.15, 0.75),
            ),
        ),
    ),
    alone(
        "stumble",
        solo(
            advance=0.5 * (time - 0.5),
            lean=0.9 * bump(0.3, 0.8),
            leg_l=0.8 * bump(0.3, 0.7),
            leg_r=-0.7 * bump(0.35, 0.9),
            **both(arm=1.3 * bump(0.3, 0.8), out=0.2 + 0.5 * bump(0.3, 0.8)),
        ),
    ),
    alone(
        "tremble",
        solo(tilt=0.1 * swing(5.0), side=0.03 * swing(5.0, 0.2), **both(elbow=1.6 + 0.15 * swing(5.0), arm=0.4)),
    ),
    alone("nod_and_look_round", solo(heading=0.5 + 0.9 * sin(turns), nod=0.25 * swing(2.0), **both(arm=0.1))),
)
