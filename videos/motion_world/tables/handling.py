"""Things pushed, shaken, turned, poured and shown by hands."""

from __future__ import annotations

from ..stage.curves import bump, cos, drop, hop, ramp, sin, since, swing, turns
from ..stage.registry import alone, pair
from ..stage.scenes import Item, Table
from .words import box, grip, lone, other, plank

HANDLING = (
    pair(
        "push_along",
        "pull_along",
        Table(
            (lone(x=-0.3 + 0.75 * ramp(0.3, 0.95)),),
            ({"x": -1.2 + 0.65 * ramp(0.0, 0.3) + 0.75 * ramp(0.3, 0.95), "y": 0.05, "open": 0.6},),
        ),
    ),
    pair(
        "push_away",
        "draw_near",
        Table(
            (lone(y=0.35 - 0.6 * ramp(0.2, 0.9), size=1.25 - 0.6 * ramp(0.2, 0.9)),),
            ({"x": 0.0, "y": 0.65 - 0.75 * ramp(0.2, 0.9), "open": 0.6},),
        ),
    ),
    alone(
        "push_off_edge",
        Table(
            (lone(x=0.6 * ramp(0.2, 0.55) + 0.35 * since(0.5), y=1.6 * drop(0.5, 0.85), angle=3.0 * since(0.45)),),
            ({"x": -0.95 + 0.4 * ramp(0.0, 0.2) + 0.6 * ramp(0.2, 0.55), "y": 0.05, "open": 0.5},),
        ),
    ),
    alone(
        "poke",
        Table(
            (lone(x=0.07 * bump(0.4, 0.65), angle=0.15 * bump(0.4, 0.65)),),
            ({"x": -0.75 + 0.5 * bump(0.15, 0.85), "y": 0.05, "open": 0.0},),
        ),
    ),
    alone(
        "tap_again_and_again",
        Table((lone(y=0.2),), ({"x": 0.0, "y": -0.3 + 0.25 * swing(2.8), "turn": 2.6, "open": 0.0, "depth": -0.5},)),
    ),
    alone("shake", Table((lone(x=0.2 * swing(2.8), angle=0.35 * swing(2.8)),), (grip(0.2 * swing(2.8)),))),
    alone(
        "wipe", Table((plank(wide=2.2, tall=1.4),), (grip(0.5 * swing(1.6), 0.15 * swing(0.8), open=0.8, depth=-0.5),))
    ),
    alone(
        "stir",
        Table(
            (box(y=0.25, size=1.3),),
            ({"x": 0.18 * cos(2.0 * turns), "y": -0.25 + 0.06 * sin(2.0 * turns), "turn": 2.9, "open": 0.0},),
        ),
    ),
    alone(
        "rub_between_hands",
        Table(
            (lone(size=0.7, angle=1.5 * swing(2.4)),),
            (grip(0.2 + 0.12 * swing(2.4), turn=-1.0), grip(-0.2 - 0.12 * swing(2.4), turn=1.0)),
        ),
    ),
    alone(
        "hand_to_hand",
        Table(
            (lone(x=0.5 * swing(1.3), y=-0.35 * hop(2.6, 0.5), size=0.7),),
            (grip(0.55, 0.1, open=0.6), grip(-0.55, 0.1, open=0.6)),
        ),
    ),
    pair(
        "turn_upside_down",
        "turn_upright",
        Table((lone(angle=3.14 * ramp(), y=-0.15 * bump()),), (grip(0.15, -0.1 * bump(), turn=0.7 * ramp()),)),
        verb="turn_over",
    ),
    pair(
        "tip_over",
        "set_upright",
        Table(
            (
                lone(
                    wide=0.6,
                    tall=1.5,
                    angle=1.5 * ramp(0.3, 0.7),
                    x=-0.1 + 0.3 * ramp(0.3, 0.7),
                    y=0.18 * ramp(0.4, 0.7),
                ),
            ),
            ({"x": -0.85 + 0.55 * bump(0.1, 0.9), "y": -0.15, "open": 0.4},),
        ),
    ),
    alone(
        "tip_and_fall_back",
        Table(
            (lone(wide=0.6, tall=1.5, angle=0.5 * bump(0.2, 0.6) - 0.15 * bump(0.6, 0.85), x=0.1 * bump(0.2, 0.6)),),
            ({"x": -0.85 + 0.55 * bump(0.05, 0.6), "y": -0.15, "open": 0.4},),
        ),
    ),
    pair(
        "show_from_behind",
        "hide_behind",
        Table((lone(x=0.75 * ramp(), depth=1.0), other(size=1.6)), (grip(0.8 * ramp(), 0.0, depth=1.0),)),
        verb="hide",
    ),
    pair(
        "reach_for",
        "withdraw_from",
        Table((lone(y=-0.15),), ({"x": 0.0, "y": 1.1 - 1.0 * ramp(), "open": 0.8 - 0.6 * ramp(0.6, 0.9)},)),
    ),
    alone("touch_and_leave", Table((lone(y=-0.15),), ({"x": 0.0, "y": 1.1 - 1.0 * bump(), "open": 0.6},))),
    alone(
        "move_across",
        Table(
            (lone(x=-0.6 + 1.2 * ramp(0.05, 0.95), y=-0.3 * bump()),),
            (grip(-0.6 + 1.2 * ramp(0.05, 0.95), -0.3 * bump()),),
        ),
    ),
    pair("bring_to_camera", "take_from_camera", Table((lone(size=0.6 + 1.5 * ramp()),), (grip(0.0, 0.15 * ramp()),))),
    pair(
        "twist_open",
        "twist_shut",
        Table(
            (
                Item({"y": 0.2, "tall": 1.3}, look=0),
                Item({"y": -0.12 - 0.4 * ramp(0.5, 0.95), "size": 0.5, "angle": 5.0 * ramp(0.05, 0.6)}, look=1),
            ),
            (grip(0.1, -0.15 - 0.4 * ramp(0.5, 0.95), turn=0.8 * swing(2.0), depth=-0.5),),
        ),
    ),
    alone(
        "pour",
        Table(
            (
                Item({"x": -0.3, "y": -0.35, "angle": 1.9 * ramp(0.05, 0.35)}),
                box(x=0.2, y=0.45, size=0.9),
                *(
                    Item(
                        {
                            "x": -0.02 + 0.22 * ramp(0.3 + 0.09 * k, 0.55 + 0.09 * k),
                            "y": -0.3 + 0.75 * drop(0.3 + 0.09 * k, 0.55 + 0.09 * k),
                            "size": 0.22,
                            "opacity": ramp(0.28 + 0.09 * k, 0.31 + 0.09 * k),
                        },
                        look=2,
                    )
                    for k in range(5)
                ),
            ),
            (grip(-0.4, -0.35, turn=-0.5),),
        ),
    ),
)
