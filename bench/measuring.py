"""Measurements of time and memory, paired and with confidence intervals, and reports that describe the machine."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from scipy import stats

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESAMPLES = 2000
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""Names in Linux of x86 extensions for bf16 products: vectors twice as wide as float32, and tiles."""
Work = Callable[[], object]
CPU = torch.device("cpu")


class Interval(TypedDict):
    """A median with its 95 % bootstrap interval."""

    median: float
    interval_95: list[float]


def paired_seconds(
    base: Work, cases: Mapping[str, Work], rounds: int, seed: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """Measure CPU time of each case and, directly next to it, of the base, once per round after a warm-up round.

    The order of the cases, and of the two in a pair, changes from round to round, so that what slows the machine for a
    while slows both alike. CPU time leaves out what other processes take; with several threads it adds up over them,
    waiting included.

    Returns:
        For each case its pairs, ``(case, base)`` in seconds.
    """
    generator, names = random.Random(seed), list(cases)
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for counted in [False] + [True] * rounds:
        generator.shuffle(names)
        for name in names:
            if generator.random() < 0.5:
                one, other = cpu_seconds(cases[name]), cpu_seconds(base)
            else:
                other, one = cpu_seconds(base), cpu_seconds(cases[name])
            if counted:
                pairs[name].append((one, other))
    return pairs


def extra_percent(pairs: list[tuple[float, float]]) -> Interval:
    """Return the cost that a case adds to the base, in percent of the base."""
    return median_with_interval([100 * (one / other - 1) for one, other in pairs])


def median_with_interval(values: list[float], seed: int = 0) -> Interval:
    """Return the median and its 95 % bootstrap interval."""
    median = low = high = float(np.median(values))
    if len(values) > 1:
        resampled = stats.bootstrap((values,), np.median, n_resamples=RESAMPLES, method="percentile", rng=seed)
        low, high = resampled.confidence_interval
    return {"median": round(median, 3), "interval_95": [round(float(low), 3), round(float(high), 3)]}


def hardware() -> dict[str, object]:
    """Describe the hardware and library versions."""
    fields = _cpu_fields()
    flags = fields.get("flags", "").split()
    return {
        "date": date.today().isoformat(),
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "bf16_instructions": [name for name in BF16_INSTRUCTIONS if name in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _cpu_fields() -> dict[str, str]:
    """Return the fields of ``/proc/cpuinfo`` for the first core."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().partition("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def conditions(options: DataclassInstance) -> dict[str, dict[str, object]]:
    """Return the hardware, and the options of a command except for the path of its report."""
    return {
        "hardware": hardware(),
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
    }


def write_report(report: Mapping[str, object], path: Path, show: bool = True) -> None:
    """Write a report as JSON, and print it."""
    text = json.dumps(report, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    if show:
        print(text)


def cpu_seconds(work: Work) -> float:
    """Return the CPU time of one call, over all threads of the process."""
    return seconds(work, clock=time.process_time)


def seconds(work: Work, device: torch.device = CPU, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the time of one call, on a GPU until its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def process_bytes(field: str) -> int | None:
    """Return the current memory (``VmRSS``) or its peak (``VmHWM``), or None if the system does not report it."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def peak_extra_bytes(work: Work) -> int | None:
    """Return the peak memory of one call above the memory before it, or None if the system does not report it."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # reset the peak to the current memory
    before = process_bytes("VmRSS") if reset.exists() else None
    work()
    peak = process_bytes("VmHWM")
    return None if before is None or peak is None else peak - before
