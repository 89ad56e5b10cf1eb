"""Things put down, picked up, covered, stacked and lifted by hands."""

from __future__ import annotations

from ..stage.curves import bump, cos, drop, ramp
from ..stage.registry import alone, pair
from ..stage.scenes import Item, Table
from .words import box, grip, leaving, lone, other, plank

PLACING = (
    pair(
        "put_down",
        "pick_up",
        Table(
            (lone(y=0.15 - 1.1 * (1 - ramp(0.0, 0.5))),), (leaving(0.0, 0.15 - 1.1 * (1 - ramp(0.0, 0.5)), 0.6, 1.0),)
        ),
    ),
    pair(
        "put_next_to",
        "take_from_beside",
        Table(
            (lone(x=-0.3, y=0.1), other(x=0.25, y=0.1 - 1.1 * (1 - ramp(0.0, 0.5)))),
            (leaving(0.25, 0.1 - 1.1 * (1 - ramp(0.0, 0.5)), 0.6, 1.0),),
        ),
    ),
    pair(
        "put_behind",
        "take_from_behind",
        Table(
            (other(x=0.85 - 0.75 * ramp(0.05, 0.55), y=-0.12, depth=1.0), lone(y=0.1, size=1.5)),
            (leaving(0.85 - 0.75 * ramp(0.05, 0.55), -0.12, 0.65, 1.0) | {"depth": 1.0},),
        ),
    ),
    pair(
        "put_in_front",
        "take_from_front",
        Table(
            (lone(y=-0.1, size=1.5), other(x=0.9 - 0.85 * ramp(0.05, 0.55), y=0.15, depth=-1.0)),
            (leaving(0.9 - 0.85 * ramp(0.05, 0.55), 0.15, 0.65, 1.0) | {"depth": -1.0},),
        ),
    ),
    pair(
        "put_into",
        "take_out_of",
        Table(
            (lone(y=-1.0 + 1.05 * ramp(0.0, 0.6), size=0.75), box(y=0.25, size=1.2)),
            (
                leaving(0.15, -1.1 + 0.8 * ramp(0.0, 0.6), 2.0, 2.1)
                | {"y": -0.95 + 0.75 * ramp(0.0, 0.55) - 0.9 * ramp(0.65, 1.0)},
            ),
        ),
    ),
    pair(
        "put_hand_in",
        "take_hand_out",
        Table((box(y=0.2, size=1.2),), ({"x": 0.0, "y": -0.9 + 0.95 * ramp(0.05, 0.7), "turn": 3.1, "depth": 0.0},)),
        verb="reach_in",
    ),
    pair(
        "stack_on",
        "unstack",
        Table(
            (lone(y=0.3), other(y=-0.1 - 0.9 * (1 - ramp(0.0, 0.5)), depth=-0.3)),
            (leaving(0.0, -0.1 - 0.9 * (1 - ramp(0.0, 0.5)), 0.6, 1.0) | {"depth": -0.3},),
        ),
    ),
    pair(
        "put_under",
        "take_from_under",
        Table(
            (
                lone(y=0.15 - 0.4 * bump(0.0, 1.0), size=1.4),
                other(x=0.9 - 0.9 * ramp(0.15, 0.55), y=0.25, size=0.7, depth=0.5),
            ),
            (leaving(0.9 - 0.9 * ramp(0.15, 0.55), 0.3, 0.6, 0.95) | {"depth": 0.5},),
        ),
    ),
    pair(
        "cover",
        "uncover",
        Table(
            (lone(), other(x=1.1 - 1.1 * ramp(0.05, 0.7), wide=1.6, tall=1.4, depth=-0.5)),
            (grip(1.25 - 1.1 * ramp(0.05, 0.7), 0.15, depth=-0.5),),
        ),
    ),
    pair(
        "line_up",
        "mess_up",
        Table(
            (
                lone(x=-0.55 + 0.3 * (1 - ramp()), y=0.1 - 0.45 * (1 - ramp()), size=0.7, angle=1.0 - ramp()),
                other(y=0.1 + 0.4 * (1 - ramp()), size=0.7, angle=ramp() - 1.0),
                Item(
                    {
                        "x": 0.55 - 0.45 * (1 - ramp()),
                        "y": 0.1 - 0.2 * (1 - ramp()),
                        "size": 0.7,
                        "angle": 0.6 - 0.6 * ramp(),
                    },
                    look=2,
                ),
            )
        ),
    ),
    alone(
        "swap_places",
        Table(
            (lone(x=-0.4 * cos(3.14 * ramp()), y=-0.25 * bump()), other(x=0.4 * cos(3.14 * ramp()), y=0.25 * bump()))
        ),
    ),
    alone(
        "lift_and_drop",
        Table(
            (lone(y=0.25 - 0.7 * ramp(0.1, 0.5) + 0.7 * drop(0.55, 0.72)),), (grip(0.0, 0.25 - 0.7 * ramp(0.1, 0.5)),)
        ),
    ),
    alone("lift_and_put_back", Table((lone(y=0.25 - 0.65 * bump()),), (grip(0.0, 0.25 - 0.65 * bump()),))),
    pair("lift_up", "let_down", Table((lone(y=0.35 - 0.8 * ramp()),), (grip(0.0, 0.35 - 0.8 * ramp()),))),
    pair(
        "lift_one_end",
        "lower_one_end",
        Table(
            (plank(wide=2.2, tall=0.5, angle=-0.6 * ramp(), y=0.1 - 0.2 * ramp()),), (grip(0.4, 0.1 - 0.45 * ramp()),)
        ),
    ),
)
