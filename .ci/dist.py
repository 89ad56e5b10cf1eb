"""Reproducible builds: the same commit gives the same bytes of sdist and wheel.

    python .ci/dist.py --out dist

The tracked files are copied with the modes of git, so neither umask nor leftovers of an earlier build matter. All
times are that of the commit, or ``SOURCE_DATE_EPOCH`` if it is set. The wheel is built from the sdist. The bytes still
depend on the versions of setuptools (pinned in constraints.txt) and zlib.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Build both files and print their names and checksums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the files; default: dist")
    parser.add_argument("--allow-changes", action="store_true", help="build although files differ from the commit")
    options = parser.parse_args()
    changes = git("status", "--porcelain")
    if changes and not options.allow_changes:
        print(f"Commit or stash these changes first, or pass --allow-changes:\n{changes}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["SOURCE_DATE_EPOCH"] = epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as folder:
        sources, unpacked = Path(folder, "sources"), Path(folder, "unpacked")
        copy_tracked_files(sources)
        sdist = build("sdist", sources, options.out)
        normalize(sdist, int(epoch))
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        wheel = build("wheel", next(unpacked.iterdir()), options.out)
    print(f"{sdist}\n{wheel}")
    return 0


def git(*arguments: str) -> str:
    """Return the output of git in the checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def copy_tracked_files(target: Path) -> None:
    """Copy the tracked files of the checkout with mode 644, or 755 if git has them as executable."""
    for line in git("ls-files", "--stage", "-z").split("\0"):
        if line:
            mode, path = line.split(" ", 1)[0], line.split("\t", 1)[1]
            if (ROOT / path).is_file():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, target / path)
                (target / path).chmod(0o755 if mode == "100755" else 0o644)


def build(kind: str, sources: Path, out: Path) -> Path:
    """Build an sdist or a wheel with the setuptools of this environment and return its path."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(out.resolve())], cwd=sources, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(result.stderr[-4000:])
    return out / result.stdout.splitlines()[-1]


def normalize(sdist: Path, epoch: int) -> None:
    """Rewrite an sdist in order of its names, with one time, one owner and no name or time in its gzip header."""
    with tarfile.open(sdist) as archive:
        entries = sorted(archive.getmembers(), key=lambda entry: entry.name)
        contents = {entry.name: archive.extractfile(entry).read() for entry in entries if entry.isfile()}
    with (
        sdist.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in entries:
            clean = tarfile.TarInfo(entry.name)
            clean.type, clean.mode, clean.size, clean.mtime = entry.type, entry.mode & 0o755, entry.size, epoch
            archive.addfile(clean, io.BytesIO(contents[entry.name]) if entry.isfile() else None)


if __name__ == "__main__":
    sys.exit(main())
