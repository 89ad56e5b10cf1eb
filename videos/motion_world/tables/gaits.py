"""Gaits of one body: ways to get from place to place, or to move the legs without getting anywhere."""

from __future__ import annotations

from ..stage.curves import Channels, beat, bump, flight, hop, positive, ramp, swing, time
from ..stage.registry import FRONT, alone, both, pair, solo


def gait(
    stride: float, knee: float, cycles: float, advance: float, arm: float, elbow: float = 0.25, lean: float = 0.03
) -> Channels:
    """Return the channels of alternating legs and opposite arms."""
    step, lift = swing(cycles), swing(cycles, 0.25)
    return {
        "advance": advance * (time - 0.5),
        "lean": lean,
        "leg_l": stride * step,
        "leg_r": -stride * step,
        "knee_l": 0.05 + knee * positive(lift),
        "knee_r": 0.05 + knee * positive(-lift),
        "arm_l": -arm * step,
        "arm_r": arm * step,
        **both(elbow=elbow),
    }


GAITS = (
    pair("walk", "walk_backward", solo(**gait(0.45, 0.6, 1.7, 1.1, 0.4))),
    pair("run", "run_backward", solo(**gait(0.8, 1.5, 2.2, 1.7, 0.8, 1.5, 0.25) | {"rise": 0.06 * hop(4.4)})),
    pair(
        "sneak", "sneak_backward", solo(**gait(0.5, 1.3, 1.1, 0.6, 0.15, 1.6, 0.6) | both(leg=0.35 + 0.5 * swing(1.1)))
    ),
    pair("march", "march_backward", solo(**gait(0.55, 0.0, 1.6, 0.9, 0.7, 0.0, -0.05))),
    pair(
        "skip_along",
        "skip_backward",
        solo(**gait(0.5, 1.4, 1.5, 1.2, 0.7, 0.5) | {"rise": 0.16 * hop(3.0)}),
    ),
    pair(
        "hop_forward",
        "hop_backward",
        solo(
            advance=1.0 * (time - 0.5), rise=0.17 * hop(3), **both(leg=0.3, knee=0.8 - 0.7 * hop(3), arm=0.6 * hop(3))
        ),
    ),
    pair(
        "hop_on_one_leg",
        "hop_on_one_leg_backward",
        solo(
            advance=0.8 * (time - 0.5),
            rise=0.1 * hop(4),
            leg_l=0.3,
            knee_l=1.6,
            knee_r=0.3 - 0.25 * hop(4),
            **both(out=0.6),
        ),
    ),
    pair(
        "crawl",
        "crawl_backward",
        solo(
            advance=0.8 * (time - 0.5),
            lean=1.35,
            nod=-0.7,
            leg_l=0.1 + 0.4 * swing(1.8),
            leg_r=0.1 - 0.4 * swing(1.8),
            arm_l=0.1 - 0.4 * swing(1.8),
            arm_r=0.1 + 0.4 * swing(1.8),
            **both(knee=1.6, elbow=0.0),
        ),
    ),
    pair(
        "limp",
        "limp_backward",
        solo(
            **gait(0.4, 0.4, 1.6, 0.8, 0.3) | {"knee_r": 0.05, "tilt": 0.22 * swing(1.6, 0.1), "rise": 0.04 * beat(1.6)}
        ),
    ),
    pair(
        "leap_across",
        "leap_back",
        solo(
            advance=0.9 * (ramp(0.2, 0.8) - 0.5),
            rise=0.28 * flight(0.25, 0.75),
            leg_l=0.9 * bump(0.2, 0.8),
            leg_r=-0.9 * bump(0.2, 0.8),
            lean=0.2,
            **both(arm=1.4 * bump(0.1, 0.9), knee=0.5 * (bump(0.05, 0.35) + bump(0.65, 0.95))),
        ),
    ),
    pair(
        "step_forward",
        "step_back",
        solo(
            **gait(0.0, 0.0, 1, 0, 0)
            | {
                "advance": 0.35 * (ramp(0.2, 0.8) - 0.5),
                "leg_l": 0.7 * bump(0.15, 0.65),
                "leg_r": -0.5 * bump(0.25, 0.85),
                "knee_l": 0.6 * bump(0.15, 0.5),
            }
        ),
    ),
    alone("walk_in_place", solo(**gait(0.4, 1.2, 1.9, 0.0, 0.4))),
    alone("run_in_place", solo(**gait(0.6, 1.7, 3.0, 0.0, 0.7, 1.5) | {"rise": 0.06 * hop(6)})),
    alone(
        "side_step",
        solo(
            heading=FRONT,
            side=0.9 * (time - 0.5),
            rise=0.05 * hop(4),
            **both(apart=0.06 + 0.45 * beat(2.0), out=0.2 + 0.3 * beat(2.0)),
        ),
    ),
    alone(
        "stagger",
        solo(
            **gait(0.35, 0.5, 1.7, 0.7, 0.2)
            | {"tilt": 0.35 * swing(1.2, 0.3), "side": 0.12 * swing(1.2), "lean": 0.2 * swing(1.7), **both(out=0.5)}
        ),
    ),
)
