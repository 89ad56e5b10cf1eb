"""Motions that change a thing itself: its shape, its parts, and whether it is there."""

from __future__ import annotations

from ..stage.curves import Value, beat, bump, drop, hop, ramp, swing, time
from ..stage.registry import alone, pair
from ..stage.scenes import Item, Table
from .words import grip, lone, other

BIG = 1.4


def whole(**moves: Value) -> Table:
    """Return the scene of one large thing."""
    return Table((lone(size=BIG, **moves),))


def sheet(**moves: Value) -> Item:
    """Return the first thing as a sheet."""
    return Item(moves, part="sheet")


def halves(parts: tuple[str, str], first: dict[str, Value], second: dict[str, Value]) -> tuple[Item, Item]:
    """Return the two halves of one large thing."""
    return Item({"size": BIG, **first}, part=parts[0]), Item({"size": BIG, **second}, part=parts[1])


SIDEWAYS, UPRIGHT = ("left", "right"), ("top", "bottom")
OUT = 0.5 * ramp()

CHANGES = (
    alone(
        "squeeze",
        Table(
            (lone(size=BIG, wide=1 - 0.5 * bump(), tall=1 + 0.3 * bump()),),
            (grip(0.45 - 0.2 * bump(), turn=-0.9), grip(-0.45 + 0.2 * bump(), turn=0.9)),
        ),
    ),
    pair("flatten", "puff_up", whole(tall=1 - 0.75 * ramp(), wide=1 + 0.5 * ramp(), y=0.25 * ramp())),
    pair(
        "stretch",
        "contract",
        Table(
            (lone(wide=1 + 1.3 * ramp(), tall=1 - 0.35 * ramp()),),
            (grip(0.25 + 0.3 * ramp(), turn=-0.8), grip(-0.25 - 0.3 * ramp(), turn=0.8)),
        ),
    ),
    alone("stretch_and_snap_back", whole(wide=1 + 1.1 * ramp(0.1, 0.7) - 1.1 * ramp(0.74, 0.84))),
    pair(
        "fold",
        "unfold",
        Table(
            halves(
                ("sheet left", "sheet right"),
                {"wide": 1.3},
                {"wide": 1.3, "fold": ramp(), "depth": -0.1, "tall": 1 - 0.1 * ramp()},
            ),
            (grip(0.45 - 0.85 * ramp(), -0.3 * bump(), depth=-0.5),),
        ),
    ),
    pair("open_halves", "close_halves", Table(halves(SIDEWAYS, {"x": -OUT}, {"x": OUT})), verb="open"),
    pair(
        "open_lid",
        "close_lid",
        Table(halves(UPRIGHT, {"angle": -1.6 * ramp(), "x": -0.15 * ramp(), "y": -0.12 * ramp()}, {})),
        verb="open",
    ),
    pair(
        "slide_lid_off",
        "slide_lid_on",
        Table(halves(UPRIGHT, {"x": 0.75 * ramp()}, {}), (grip(0.1 + 0.75 * ramp(), -0.2, depth=-0.5),)),
        verb="open",
    ),
    pair(
        "tear_in_two",
        "rejoin",
        Table(
            halves(SIDEWAYS, {"x": -0.8 * OUT, "angle": -0.7 * ramp()}, {"x": 0.8 * OUT, "angle": 0.7 * ramp()}),
            (grip(0.35 + OUT, turn=-0.7), grip(-0.35 - OUT, turn=0.7)),
        ),
        verb="tear",
    ),
    alone(
        "tear_a_little",
        Table(
            halves(SIDEWAYS, {"x": -0.05 * ramp(), "angle": -0.3 * ramp()}, {"x": 0.05 * ramp(), "angle": 0.3 * ramp()})
        ),
        verb="tear",
    ),
    pair(
        "bend",
        "unbend",
        Table(
            (sheet(wide=2.6, tall=0.45, bend=1.2 * ramp(), y=-0.1),),
            (grip(0.5 - 0.15 * ramp(), 0.3 * ramp(), turn=-0.8), grip(-0.5 + 0.15 * ramp(), 0.3 * ramp(), turn=0.8)),
        ),
    ),
    alone("bend_and_let_go", Table((sheet(wide=2.6, tall=0.45, bend=1.2 * ramp(0.1, 0.6) - 1.2 * ramp(0.65, 0.75)),))),
    pair("crumple", "smooth_out", whole(crumple=0.9 * ramp(), angle=0.8 * ramp())),
    pair(
        "roll_up_strip",
        "unroll_strip",
        Table(
            (
                Item({"x": -0.6 + 0.6 * ramp(), "wide": 3.2 - 2.9 * ramp(), "tall": 0.7}, part="sheet"),
                Item(
                    {"x": 0.05 + 0.15 * ramp(), "size": 0.3 + 0.7 * ramp(), "angle": 6.0 * ramp(), "depth": -0.5},
                    look=1,
                ),
            )
        ),
    ),
    pair(
        "break_apart",
        "put_together",
        Table(
            tuple(
                Item(
                    {
                        "size": BIG,
                        "x": 0.4 * a * ramp(0.2, 0.8),
                        "y": 0.25 * b * ramp(0.2, 0.8) + 0.3 * drop(0.2, 0.9),
                        "angle": 1.2 * a * ramp(0.2, 0.9),
                    },
                    part=part,
                )
                for a, b, part in (
                    (-1, -1, "left top"),
                    (1, -1, "right top"),
                    (-1, 1, "left bottom"),
                    (1, 1, "right bottom"),
                )
            )
        ),
    ),
    pair("melt", "unmelt", whole(tall=1 - 0.7 * time, wide=1 + 0.9 * time * time, y=0.2 * time)),
    alone("wobble", whole(wide=1 + 0.35 * swing(2.3), tall=1 - 0.35 * swing(2.3))),
    alone("lean_to_and_fro", whole(shear=0.7 * swing(1.8))),
    alone("pulse", Table((lone(size=1.1 + 0.45 * swing(1.9)),))),
    alone("bend_to_and_fro", Table((sheet(wide=2.4, tall=0.6, bend=1.1 * swing(1.7)),))),
    alone("twist_and_untwist", whole(shear=0.9 * bump(), wide=1 - 0.35 * bump(), angle=0.6 * bump())),
    pair("inflate", "deflate", Table((lone(size=0.5 + 1.3 * ramp()),))),
    pair("grow_taller", "grow_shorter", Table((lone(tall=0.6 + 1.6 * ramp(), y=0.4 - 0.16 * (0.6 + 1.6 * ramp())),))),
    pair("appear", "disappear", whole(opacity=ramp(0.2, 0.8)), verb="fade"),
    pair("pop_up", "pop_away", Table((lone(size=0.02 + 1.3 * ramp(0.3, 0.6)),)), verb="pop"),
    alone("blink_on_and_off", whole(opacity=ramp(0.0, 0.01) * beat(2.4)), verb="fade"),
    pair(
        "emerge",
        "sink",
        Table(
            (
                lone(y=0.55 - 0.75 * ramp(), depth=1.0),
                Item({"y": 0.6, "wide": 3.0, "tall": 1.0, "size": 1.3}, 1, "sheet"),
            )
        ),
    ),
    pair("split_in_two", "merge", Table((lone(x=-OUT), Item({"x": OUT})))),
    pair(
        "curtain_opens",
        "curtain_closes",
        Table(
            (
                lone(),
                Item({"x": -0.45 - 0.75 * ramp(), "wide": 2.0, "tall": 3.0, "size": 1.3, "depth": -0.5}, 1, "sheet"),
                Item({"x": 0.45 + 0.75 * ramp(), "wide": 2.0, "tall": 3.0, "size": 1.3, "depth": -0.5}, 1, "sheet"),
            )
        ),
    ),
    alone("cover_and_show_again", Table((lone(), other(x=1.1 - 1.1 * bump(), wide=1.6, tall=1.5, depth=-0.5)))),
    alone("jelly_jumps", whole(y=0.2 - 0.45 * hop(2.2), tall=0.75 + 0.4 * hop(2.2), wide=1.25 - 0.4 * hop(2.2))),
)
