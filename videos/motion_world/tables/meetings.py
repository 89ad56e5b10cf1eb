"""Things that meet: they approach, collide, pass, circle, scatter and are piled up."""

from __future__ import annotations

from ..stage.curves import bump, cos, drop, flight, plateau, positive, ramp, sin, since, swing, time, turns
from ..stage.registry import alone, pair
from ..stage.scenes import Item, Table
from .words import grip, lone, other

MEETINGS = (
    pair(
        "things_approach",
        "things_depart",
        Table((lone(x=-0.8 + 0.5 * ramp(0.05, 0.95)), other(x=0.8 - 0.5 * ramp(0.05, 0.95)))),
        verb="approach",
    ),
    alone(
        "thing_follows_thing",
        Table((lone(x=-0.65 + 0.9 * time, y=0.2 * swing(0.9)), other(x=-0.05 + 0.9 * time, y=0.2 * swing(0.9, 0.25)))),
        verb="follow",
    ),
    alone(
        "things_collide",
        Table(
            (
                lone(x=-0.85 + 0.65 * bump(0.05, 0.95), angle=2.0 * time),
                other(x=0.85 - 0.65 * bump(0.05, 0.95), angle=-2.0 * time),
            )
        ),
        verb="collide",
    ),
    alone(
        "knock_away",
        Table((lone(x=-0.9 + 0.7 * ramp(0.0, 0.5)), other(x=0.15 + 1.0 * since(0.42), angle=4.0 * since(0.42)))),
        verb="collide",
    ),
    alone(
        "knock_over",
        Table(
            (
                lone(x=-0.95 + 0.7 * ramp(0.0, 0.5), y=0.15, size=0.8),
                other(
                    x=0.1 + 0.4 * ramp(0.42, 0.75),
                    y=0.25 * ramp(0.45, 0.75),
                    wide=0.6,
                    tall=1.6,
                    angle=1.5 * ramp(0.42, 0.75),
                ),
            )
        ),
        verb="collide",
    ),
    pair(
        "pull_two_apart",
        "push_two_together",
        Table(
            (lone(x=-0.18 - 0.45 * ramp()), other(x=0.18 + 0.45 * ramp())),
            (grip(0.3 + 0.45 * ramp(), turn=-0.6), grip(-0.3 - 0.45 * ramp(), turn=0.6)),
        ),
    ),
    alone(
        "thing_circles_thing",
        Table((lone(size=1.1), other(x=0.6 * cos(turns), y=0.35 * sin(turns), size=0.6, depth=-sin(turns)))),
        verb="circle_other",
    ),
    alone("pass_in_front", Table((lone(size=1.4), other(x=-0.9 + 1.8 * time, y=0.1, depth=-1.0)))),
    alone("pass_behind", Table((lone(size=1.4), other(x=-0.9 + 1.8 * time, y=-0.1, depth=1.0)))),
    alone("pass_over", Table((lone(y=0.2), other(x=-0.75 + 1.5 * time, y=0.2 - 0.75 * flight(0.1, 0.9), size=0.8)))),
    alone("dodge", Table((lone(x=-0.9 + 1.8 * time, size=0.8), other(y=-0.5 * plateau(0.15, 0.4, 0.6, 0.9), x=0.05)))),
    pair(
        "scatter",
        "gather",
        Table(
            tuple(
                Item(
                    {
                        "x": 0.08 * a + 0.6 * a * ramp(),
                        "y": 0.08 * b + 0.55 * b * ramp(),
                        "size": 0.6,
                        "angle": 2.0 * ramp(),
                    },
                    look=k,
                )
                for k, (a, b) in enumerate(((-1, -0.6), (1, -0.7), (-0.8, 0.8), (0.9, 0.7)))
            )
        ),
    ),
    alone(
        "juggle",
        Table(
            tuple(
                Item(
                    {
                        "x": 0.45 * cos(1.4 * turns + 2.1 * k),
                        "y": -0.1 - 0.4 * positive(sin(1.4 * turns + 2.1 * k)) + 0.1 * sin(1.4 * turns + 2.1 * k),
                        "size": 0.55,
                    },
                    look=k,
                )
                for k in range(3)
            ),
            (grip(-0.45, 0.1), grip(0.45, 0.1)),
        ),
    ),
    pair(
        "pile_up",
        "take_down_pile",
        Table(
            (
                lone(y=0.5, size=0.8),
                other(y=0.18 - 0.9 * (1 - ramp(0.05, 0.4)), size=0.8, depth=-0.1),
                Item({"y": -0.14 - 1.0 * (1 - ramp(0.5, 0.9)), "size": 0.8, "depth": -0.2}, look=2),
            )
        ),
    ),
    alone(
        "topple_pile",
        Table(
            (
                lone(y=0.45, size=0.8, x=-0.1 * ramp(0.4, 0.7)),
                other(y=0.13 + 0.3 * drop(0.4, 0.7), x=0.4 * ramp(0.35, 0.7), angle=2.0 * ramp(0.35, 0.7), size=0.8),
                Item(
                    {
                        "y": -0.2 + 0.65 * drop(0.35, 0.75),
                        "x": 0.8 * ramp(0.3, 0.75),
                        "angle": 4.0 * ramp(0.3, 0.75),
                        "size": 0.8,
                    },
                    look=2,
                ),
            )
        ),
    ),
    pair(
        "carry_off",
        "bring_back",
        Table(
            (
                lone(x=-0.2 + 1.2 * ramp(0.2, 1.0), y=-0.2, size=0.7),
                Item({"x": -0.2 + 1.2 * ramp(0.2, 1.0), "y": 0.15, "wide": 2.0, "tall": 0.6}, look=1),
            )
        ),
        verb="carry",
    ),
)
