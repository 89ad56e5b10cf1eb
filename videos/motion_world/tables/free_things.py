"""Things that fall, fly, bounce, roll and spin."""

from __future__ import annotations

from ..stage.curves import bump, drop, flight, hop, ramp, swing, time, turns
from ..stage.registry import alone, pair
from ..stage.scenes import Item, Table
from .words import box, grip, lone, other

FREE = (
    alone("fall", Table((lone(y=-0.85 + 1.2 * drop(0.1, 0.7)),))),
    pair(
        "drop",
        "snatch_up",
        Table(
            (lone(y=-0.5 + 1.0 * drop(0.35, 0.75)),),
            (grip(0.0, -0.5) | {"open": 0.15 + 0.85 * ramp(0.3, 0.4), "turn": 2.9},),
        ),
    ),
    alone(
        "drop_into",
        Table(
            (lone(y=-0.75 + 0.85 * drop(0.3, 0.6), size=0.7), box(y=0.25, size=1.2)),
            (grip(0.0, -0.75) | {"open": 0.15 + 0.85 * ramp(0.25, 0.35), "turn": 2.9},),
        ),
    ),
    alone(
        "drop_behind",
        Table(
            (lone(y=-0.8 + 0.75 * drop(0.3, 0.65), depth=1.0), other(y=0.15, size=1.6)),
            (grip(0.0, -0.8, depth=1.0) | {"turn": 2.9},),
        ),
    ),
    alone(
        "toss_and_catch",
        Table(
            (lone(y=0.25 - 0.9 * flight(0.15, 0.85), size=0.8),),
            (grip(0.0, 0.3 - 0.12 * bump(0.05, 0.25) + 0.05 * bump(0.8, 1.0)),),
        ),
    ),
    pair(
        "throw_away",
        "catch",
        Table(
            (lone(x=-0.3 + 1.5 * ramp(0.35, 0.95), y=0.2 - 0.55 * flight(0.35, 1.05), size=0.7),),
            (grip(-0.3 + 0.2 * bump(0.15, 0.5), 0.2 - 0.2 * bump(0.2, 0.5)),),
        ),
    ),
    alone(
        "throw_against",
        Table((lone(x=-0.6 + 1.1 * bump(0.1, 0.9), angle=4.0 * time, size=0.7), other(x=0.8, tall=2.2, wide=0.6))),
    ),
    alone("bounce_on_floor", Table((lone(y=0.4 - 0.7 * hop(2.3)),))),
    alone("bounce_lower_and_lower", Table((lone(y=0.4 - 0.9 * (1 - 0.75 * time) * hop(2.6)),))),
    pair(
        "roll_down",
        "roll_up",
        Table(
            (
                lone(
                    x=-0.6 + 1.1 * drop(0.1, 0.9), y=-0.4 + 0.75 * drop(0.1, 0.9), angle=7.0 * drop(0.1, 0.9), size=0.8
                ),
                Item({"x": 0.1, "y": 0.35, "angle": 0.6, "wide": 4.5, "tall": 0.35, "depth": 0.5}, 1, "sheet"),
            )
        ),
    ),
    alone("roll_along", Table((lone(x=-0.8 + 1.6 * time, y=0.2, angle=8.0 * time, size=0.9),))),
    alone(
        "roll_off_edge",
        Table(
            (
                lone(x=-0.6 + 1.2 * time, y=0.1 + 1.4 * drop(0.5, 0.9), angle=7.0 * time, size=0.8),
                Item({"x": -0.65, "y": 0.5, "wide": 3.6, "tall": 0.7, "depth": 0.5}, 1, "sheet"),
            )
        ),
    ),
    alone("spin_on_spot", Table((lone(angle=2.0 * turns),))),
    pair("spin_down", "spin_up", Table((lone(angle=14.0 * (time - 0.5 * time * time)),))),
    alone(
        "hang_and_swing",
        Table((lone(x=0.55 * swing(1.6), y=0.25 - 0.2 * swing(1.6) * swing(1.6), angle=-0.6 * swing(1.6)),)),
    ),
    alone(
        "float_down_like_a_leaf",
        Table((lone(x=0.35 * swing(1.8), y=-0.8 + 1.4 * time, angle=0.7 * swing(1.8, 0.1), tall=0.5),)),
    ),
)
