"""The cells of a matrix in processes: pending ones are run or resumed, finished ones never again.

A cell that fails, diverges, runs out of memory or is killed leaves its status, and the others continue. Ctrl-C stops
the running cells at their next step. The same call resumes them.
"""

from __future__ import annotations

import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dmgal.bench.matrix.cell import Job, write_result
from dmgal.bench.matrix.experiment import Cell, Experiment
from dmgal.bench.matrix.results import (
    CANCELLED,
    CANCELLED_FOLDER,
    DONE,
    FAILED,
    OUT_OF_MEMORY,
    RESULTS,
    UNSUCCESSFUL,
    Result,
    check_one_origin,
    check_same_settings,
    folder_for,
    origin,
    read_result,
    read_results,
    status,
)
from dmgal.files import delete, printable
from dmgal.progress import progress_bar
from dmgal.recipes.run.cli_errors import INTERRUPTED
from dmgal.recipes.run.data import build_catalog
from dmgal.recipes.run.folder import environment
from dmgal.recipes.training.signals import PREEMPTED

logger = logging.getLogger(__name__)
GRACE_SECONDS = 60.0
"""Time of a stopped cell to save its training before it is killed."""
LAST_LINES = 5
Start = Callable[[Path, Path, Mapping[str, str]], "subprocess.Popen[bytes]"]


def start_process(job: Path, log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a cell, with its output in a file."""
    with log.open("w", encoding="utf-8") as file:
        words = [sys.executable, "-m", "dmgal.bench.matrix.cell", str(job)]
        return subprocess.Popen(words, stdout=file, stderr=file, env={**os.environ, **variables})


@dataclass
class Runner:
    """The processes of an experiment, and the folder of its results.

    Args:
        experiment, folder: the matrix, and the folder of its results, see ``results.py``.
        processes: number of cells at a time, each with its share of the cores.
        retry: also run the cells again that failed, diverged or ran out of memory.
        quiet: hide progress.
        start: starts the process of a job.
    """

    experiment: Experiment
    folder: Path
    processes: int = 1
    retry: bool = False
    quiet: bool = False
    start: Start = start_process
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def __post_init__(self) -> None:
        self.meta = environment()
        self.meta["hardware"]["threads"] = self.threads
        self.results_folder = self.folder / folder_for(self.meta)

    @property
    def threads(self) -> int:
        """Number of threads of each process: ``OMP_NUM_THREADS`` if it is set, else an equal share of the cores."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdigit() and int(given) else max(1, (os.cpu_count() or 1) // self.processes)

    def results(self) -> dict[str, Result]:
        """Return the results of this experiment's cells so far, by name.

        Raises:
            DmgalError: some are of other hardware, of other code, or of other settings of their cell.
        """
        cells = self.experiment.cells()
        names = {cell.name for cell in cells}
        found = {name: one for name, one in read_results(self.results_folder).items() if name in names}
        check_one_origin(found, origin(self.meta))
        check_same_settings(found, cells, self.experiment)
        return found

    def pending(self) -> list[Cell]:
        """Return the cells to run."""
        found = self.results()
        return [
            cell
            for cell in self.experiment.cells()
            if cell.name not in found or (self.retry and status(found[cell.name]) in UNSUCCESSFUL)
        ]

    def run(self) -> dict[str, Result]:
        """Run all pending cells and return the results of all cells by name.

        Raises:
            DmgalError: see `results`.
            KeyboardInterrupt: after the running cells have ended.
        """
        cells = self.pending()
        for folder in (self.results_folder, self.folder / CANCELLED_FOLDER, self.folder / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self._generate(cells)
        done = len(self.experiment.cells()) - len(cells)
        bar = progress_bar(progress=not self.quiet, total=done + len(cells), initial=done, desc="cells", unit="cell")
        clock = _Clock(len(cells), self.processes)
        try:
            with _sigterm_as_interrupt(), ThreadPoolExecutor(self.processes) as pool:
                try:
                    for cell, result, seconds in pool.map(self._run, cells):
                        clock.seconds.append(seconds)
                        if not self.quiet:
                            logger.info("%s: %s; %s", cell.describe(), outcome(result), clock.left())
                        bar.update()
                except BaseException:
                    self.stop()
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            bar.close()
        return self.results()

    def stop(self) -> None:
        """End the running cells. A training saves its state first."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        end = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _generate(self, cells: Iterable[Cell]) -> None:
        """Generate the missing data sets before several processes need them."""
        configs = []
        for cell in cells:
            if cell.recipe.data.generate != "no" and cell.recipe.data not in configs:
                configs.append(cell.recipe.data)
                build_catalog(cell.recipe.data, progress=not self.quiet)

    def _run(self, cell: Cell) -> tuple[Cell, Result, float]:
        """Run a cell in a process, and return its result and its seconds."""
        started, path = time.perf_counter(), self.results_folder / f"{cell.name}.json"
        cancelled = self.folder / CANCELLED_FOLDER / path.name
        job = Job(self.experiment, cell.name, self.folder / "runs" / cell.name, path)
        job_file, log = (self.folder / "logs" / f"{cell.name}.{end}" for end in ("json", "txt"))
        if self._stopped:
            return cell, {"train_info": {"status": CANCELLED}}, 0.0
        delete(path)
        job.write(job_file)
        with self._lock:
            process = self.start(job_file, log, {"OMP_NUM_THREADS": str(self.threads)})
            self._running.append(process)
        code = process.wait()
        with self._lock:
            self._running.remove(process)
        if not path.exists():
            ending, error = self._ending(code, log)
            path = cancelled if ending == CANCELLED else path
            seconds = time.perf_counter() - started
            write_result(replace(job, result=path), {"status": ending}, error, self.meta, seconds)
        if path != cancelled:
            delete(cancelled)
        return cell, read_result(path), time.perf_counter() - started

    def _ending(self, code: int, log: Path) -> tuple[object, str]:
        """Return the status of a cell whose process wrote no result, and a message, from its exit code."""
        if self._stopped or code in (PREEMPTED, INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
            return CANCELLED, f"The process was stopped (exit code {code})."
        if code == -getattr(signal, "SIGKILL", 9):  # Windows has no such signal
            return OUT_OF_MEMORY, "The process was killed by SIGKILL, as Linux does if memory runs out."
        ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:] if log.exists() else []
        return FAILED, "\n".join([f"The process {ending}.", *map(printable, lines)])


@dataclass
class _Clock:
    """Estimate of the time left from the cells that have ended."""

    cells: int
    processes: int
    seconds: list[float] = field(default_factory=list)

    def left(self) -> str:
        remaining = (self.cells - len(self.seconds)) * statistics.fmean(self.seconds) / self.processes
        return f"{len(self.seconds)} of {self.cells} cells, about {duration(remaining)} left"


def duration(seconds: float) -> str:
    """Return a time as text, such as ``3 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def outcome(result: Result) -> str:
    """Return a result in one line."""
    info = result["train_info"]
    if info["status"] != DONE:
        error = result.get("run_info", {}).get("error_msg", "").splitlines()
        return f"{info['status']}{f' ({error[0]})' if error else ''}"
    percents = [
        f"{shots}-shot {one['accuracy']['percent']:.1f} ± {one['accuracy']['half_width'] or 0:.1f} %"
        for shots, one in info["results"].items()
    ]
    return f"{', '.join(percents)}, {duration(result['run_info']['total_time'])}"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that running cells are stopped. Only the main thread can do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def notices(runner: Runner, results: Sequence[Result]) -> list[str]:
    """Return a line for each cell without success, and one about results of code with uncommitted changes."""
    lines = [
        f"{result['run_info']['cell']['method']}, seed {result['run_info']['cell']['seed']}: {outcome(result)}"
        for result in results
        if status(result) != DONE
    ]
    if runner.results_folder.name != RESULTS:
        place = printable(str(runner.results_folder))
        lines.append(f"The code has uncommitted changes, so the results are in {place}.")
    return lines
