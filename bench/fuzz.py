"""Search for damaged videos that cause a crash, a hang, a leak or a warning instead of frames or one clean error.

    python -m dmgal.bench.fuzz                                  # 4,000 files, writes bench/results/fuzz.json
    python -m dmgal.bench.fuzz --files 500 --sources FOLDER     # of the videos in a folder

A seed decides which file is damaged and how. They are read in a process of their own, with a limit on its memory and on
the time for each file. If the process dies, the file counts as crashed or hung, and a new process continues after it.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import PIL.Image

from dmgal.bench.barcode_clips import KINDS, barcode, write_clip
from dmgal.bench.measuring import hardware, write_report
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.clip import uniform_frames
from dmgal.videos.decoding.video import probe_video, read_clip

OUT = Path(__file__).parent / "results" / "fuzz.json"
CLEAN = ("read", "begins", "refused")
FAILURES = ("raised", "leaked", "crashed", "hung")
MAX_BYTES = 8 * 2**30  # address space, part of which torch itself uses
SECONDS_PER_FILE = 60
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
COMPRESSIONS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


Damage = Callable[[int, Path], tuple[str, Callable[[], str]]]


@dataclass
class Findings:
    """Outcomes of reading damaged files.

    Attributes:
        outcomes: how many files of each source came to what.
        failures: seed, source and what happened, of all that came to anything but frames or one clean error.
        most_mib: the most memory that a process ever took.
    """

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, object]] = field(default_factory=list)
    most_mib: int = 0

    def add(self, seed: int, source: str, outcome: str, what: str = "") -> None:
        """Add a file."""
        self.outcomes.setdefault(source, Counter())[outcome] += 1
        if outcome not in CLEAN:
            self.failures.append({"seed": seed, "source": source, "outcome": outcome, "what": what[-1000:]})
            print(json.dumps(self.failures[-1]), file=sys.stderr, flush=True)

    def totals(self) -> dict[str, int]:
        """Return the number of files by outcome, over all sources."""
        return {name: sum(counts[name] for counts in self.outcomes.values()) for name in (*CLEAN, *FAILURES)}


def write_sources(folder: Path, kinds: Sequence[str] = tuple(KINDS)) -> Path:
    """Write intact videos: clips of these kinds, zips of every compression, and frame folders with EXIF headers."""
    folder.mkdir()
    for name in kinds:
        write_clip(folder, name.replace("/", "-"), KINDS[name], range(12))
    header = PIL.Image.Exif()
    header.update({0x0112: 6, 0x010E: "a scene", 0x011A: 72.0, 0x8769: {0x9000: b"0231"}})
    for kind in ("JPEG", "PNG"):
        frames = folder / f"frames {kind}"
        frames.mkdir()
        for number in range(5):
            PIL.Image.fromarray(barcode(number)).save(frames / f"{number}.{kind.lower()}", kind, exif=header)
    for name, compression in COMPRESSIONS.items():
        with zipfile.ZipFile(folder / f"frames {name}.zip", "w", compression) as archive:
            for number in range(5):
                file = io.BytesIO()
                PIL.Image.fromarray(barcode(number)).save(file, "JPEG", exif=header)
                archive.writestr(f"{number}.jpg", file.getvalue())
    return folder


def damaged(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Return ``data`` truncated, overwritten, or mixed with ``other``."""
    changed = bytearray(data)
    way = draw.choice(["cut", "flip", "flip", "header", "header", "zeros", "splice", "numbers", "shift"])
    if way == "cut":
        del changed[draw.randrange(len(changed)) :]
    elif way == "flip":
        for _ in range(draw.choice([1, 2, 10, 100])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif way == "header":
        for _ in range(draw.choice([1, 3, 10])):
            near_an_end = draw.randrange(min(len(changed), 1500))
            changed[draw.choice([near_an_end, -1 - near_an_end])] = draw.choice([*INTERESTING, draw.randrange(256)])
    elif way == "zeros":
        start = draw.randrange(len(changed))
        end = min(len(changed), start + draw.randrange(1, 2000))
        changed[start:end] = bytes(end - start)
    elif way == "splice":
        start = draw.randrange(min(len(data), len(other)))
        changed = bytearray(data[:start] + other[start:])
    elif way == "numbers":
        for _ in range(draw.choice([1, 4])):
            start = draw.randrange(max(1, len(changed) - 4))
            number = draw.choice([0, 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, draw.getrandbits(32)])
            changed[start : start + 4] = number.to_bytes(4, draw.choice(["big", "little"]))
    else:
        start = draw.randrange(len(changed))
        del changed[start : start + draw.randrange(1, 50)]
    return bytes(changed)


def variant(sources: Path, seed: int, here: Path) -> tuple[str, Path]:
    """Return the source that a seed chooses, and its damaged copy in ``here``. In a folder one frame is damaged."""
    draw = random.Random(seed)
    source = draw.choice(sorted(path for path in sources.iterdir() if path.is_dir() or path.stat().st_size))
    target = here / f"{seed}{source.suffix}"
    if source.is_dir():
        shutil.copytree(source, target)
        hit, others = draw.choice(sorted(target.iterdir())), sorted(source.iterdir())
    else:
        hit, others = target, sorted(path for path in sources.iterdir() if path.is_file() and path.stat().st_size)
        shutil.copy(source, target)
    hit.write_bytes(damaged(hit.read_bytes(), draw.choice(others).read_bytes(), draw))
    return source.name, target


def open_handles(path: Path) -> list[str]:
    """Return the files at or below ``path`` that this process holds open. Other handles come and go with threads."""
    handles = []
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since it was listed
            handles.append(handle.readlink())
    return [str(file) for file in handles if file.is_relative_to(path.resolve())]


def check(path: Path) -> str:
    """Return "read", "begins" if only the beginning decodes, or "refused" on one clean error.

    Raises:
        AssertionError: a handle leaked, or an answer is none of these. Anything else that reading raises.
    """
    try:
        probe = probe_video(path)
    except VideoError as error:
        assert "received:" in str(error)
        probe = None
    try:
        clip = read_clip(path, lambda count: uniform_frames(count, 8))
        assert clip.dtype.itemsize == 1 and clip.shape[:2] == (8, 3)
        assert probe is not None, "frames of a video that probing refuses"
    except VideoError as error:
        assert "received:" in str(error)
    assert not open_handles(path), "a handle leaked"
    if probe is None:
        return "refused"
    return "read" if probe.problem is None else "begins"


def search(
    sources: Path, first: int, count: int, seconds_per_file: float = SECONDS_PER_FILE, module: str = "dmgal.bench.fuzz"
) -> Findings:
    """Read one damaged file for each seed, starting at ``first``. ``module`` reads them as this one does."""
    findings, seed, end = Findings(), first, first + count
    while seed < end:
        seed = _search_until_death(module, sources, seed, end, seconds_per_file, findings)
    return findings


def _search_until_death(module: str, sources: Path, first: int, end: int, seconds: float, findings: Findings) -> int:
    """Read files in a fresh process and return the seed after the last one that it reached."""
    words = ["--reader", str(first), str(end), "--sources", str(sources), "--seconds-per-file", str(seconds)]
    command = [sys.executable, "-m", module, *words]
    seed, source, answered = first - 1, "", True
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                entry = json.loads(line)
                findings.most_mib = max(findings.most_mib, int(entry.get("mib", 0)))
                if "outcome" in entry:
                    findings.add(seed, source, entry["outcome"], entry["what"])
                    answered = True
                elif "seed" in entry:
                    seed, source, answered = entry["seed"], entry["source"], False
        errors.seek(0)
        said = errors.read()
    if answered and seed < end - 1:
        raise RuntimeError(f"The reader exited after seed {seed}: {said[-2000:]}")
    if not answered:
        findings.add(seed, source, "hung" if "Timeout (" in said else "crashed", f"{process.returncode}: {said}")
    return seed + 1


def _read(sources: Path, first: int, end: int, seconds: float) -> Iterator[dict[str, object]]:
    """Read videos and yield the current one and its outcome."""
    warnings.simplefilter("error")

    def damage(seed: int, here: Path) -> tuple[str, Callable[[], str]]:
        source, path = variant(sources, seed, here)
        return source, lambda: check(path)

    return read_damaged(damage, first, end, seconds, MAX_BYTES)


def read_damaged(damage: Damage, first: int, end: int, seconds: float, max_bytes: int) -> Iterator[dict[str, object]]:
    """Read a damaged file for each seed, and yield the current one and its outcome.

    Args:
        damage: returns the source that a seed chooses, and a function that reads its damaged copy in a folder.
        first, end: range of the seeds.
        seconds: limit for each file, after which this process ends.
        max_bytes: limit on the address space of this process.
    """
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    for seed in range(first, end):
        with tempfile.TemporaryDirectory() as here:
            source, read = damage(seed, Path(here))
            yield {"seed": seed, "source": source}
            faulthandler.dump_traceback_later(seconds, exit=True)
            try:
                yield {"outcome": read(), "what": ""}
            except AssertionError as error:
                yield {"outcome": "leaked" if "leaked" in str(error) else "raised", "what": str(error)}
            except Exception as error:  # the search is for exactly such errors
                frames = "".join(traceback.format_tb(error.__traceback__)[-3:])
                yield {"outcome": "raised", "what": f"{type(error).__name__}: {str(error)[:300]}\n{frames}"}
            faulthandler.cancel_dump_traceback_later()
    yield {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


Reader = Callable[[Path, int, int, float], Iterator[dict[str, object]]]
"""Function of a folder of sources, a first and an end seed, and the limit of seconds for a file."""


def parse(description: str | None, read: Reader, files: int, seconds: float, out: Path) -> argparse.Namespace:
    """Return the options of a search. The process of a reader reads its files and exits here.

    Args:
        description: text of ``--help``.
        read: reads damaged files and yields what happened.
        files, seconds, out: defaults.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=files)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sources", type=Path, help="folder of intact files; without it they are made, of every kind")
    parser.add_argument("--seconds-per-file", type=float, default=seconds)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--reader", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        first, end = options.reader
        for event in read(options.sources, first, end, options.seconds_per_file):
            print(json.dumps(event), flush=True)
        sys.exit()
    return options


def main() -> None:
    """Search, write the report, and exit with 1 if any outcome is neither frames nor a clean error."""
    options = parse(__doc__, _read, 4000, SECONDS_PER_FILE, OUT)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        sources = options.sources or write_sources(Path(name) / "sources")
        findings = search(sources, options.first_seed, options.files, options.seconds_per_file)
    report = {
        "hardware": hardware(),
        "versions": {package: version(package) for package in ("av", "pillow")},
        "files": options.files,
        "first_seed": options.first_seed,
        "seconds": round(time.monotonic() - start),
        "seconds_per_file_limit": options.seconds_per_file,
        "memory_limit_gib": MAX_BYTES // 2**30,
        "most_memory_mib": findings.most_mib,
        "outcomes": findings.totals(),
        "by_source": {source: dict(counts) for source, counts in sorted(findings.outcomes.items())},
        "failures": findings.failures,
    }
    write_report(report, options.out)
    sys.exit(1 if findings.failures else 0)


if __name__ == "__main__":
    main()
