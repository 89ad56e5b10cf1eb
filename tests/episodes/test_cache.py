"""Video states on disk: reproducible bytes, and rejection of damaged states and of other models and videos."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forked
import numpy as np
import pytest
import torch

from dmgal.episodes import EpisodeSampler
from dmgal.episodes.evaluation import cache as cache_module
from dmgal.episodes.evaluation import encode_videos, evaluate, state_files
from dmgal.episodes.evaluation.cache import StateCache
from dmgal.episodes.evaluation.identity import describe
from dmgal.episodes.evaluation.state_files import KEY, StateFiles
from dmgal.errors import DmgalError
from dmgal.files import exclusively

SCRIPT = Path(__file__).with_name("killed_cache.py")
_spec = importlib.util.spec_from_file_location("killed_cache", SCRIPT)
killed_cache = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(killed_cache)
VIDEOS, BLOCK, Clips, cache, recognizer = (
    getattr(killed_cache, name) for name in ("VIDEOS", "BLOCK", "Clips", "cache", "recognizer")
)


def content(folder: Path) -> dict[str, bytes]:
    """Read every file except the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def started(folder: Path, rank: int = 0, count: int = 1, kill_at: int = -1) -> forked.Program:
    return forked.start([str(SCRIPT), str(folder), str(rank), str(count), str(kill_at)])


def encoded(program: forked.Program) -> int:
    assert program.wait() == [0], program.stderr
    return int(program.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A cache filled by one process without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    threads, model = torch.get_num_threads(), recognizer()
    torch.set_num_threads(1)  # as in a separate process
    assert cache(folder, model).fill(model, Clips(-1), progress=False).encoded == VIDEOS
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def filled(whole, tmp_path) -> Path:
    """A copy of the complete cache that a test may change."""
    import shutil

    shutil.copytree(whole, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.slow
def test_killed_encoding_resumes_bit_identical(whole, tmp_path) -> None:
    folder = tmp_path / "cache"
    assert started(folder, kill_at=9).wait() == [-signal.SIGKILL]
    assert sorted(path.name for path in (folder / "blocks").iterdir()) == ["00000.json", "00001.json"]
    assert encoded(started(folder)) == VIDEOS - 2 * BLOCK
    assert content(folder) == content(whole)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(whole, tmp_path) -> None:
    folder = tmp_path / "cache"
    processes = [started(folder, rank, count=2) for rank in range(2)]
    shares = [encoded(process) for process in processes]
    assert sum(shares) == VIDEOS and min(shares) > 0
    assert content(folder) == content(whole)


def test_states_are_opened_before_lock_is_released(whole, tmp_path, monkeypatch) -> None:
    """Another process replaces the states as soon as the lock is free."""
    model, other = recognizer(), killed_cache.FewShotRecognizer(recognizer().encoder, killed_cache.BiMHM("none")).eval()

    @contextmanager
    def followed_at_once(*given) -> Iterator[None]:
        with exclusively(*given):
            yield
        with monkeypatch.context() as patch:
            patch.setattr(cache_module, "exclusively", exclusively)
            cache(tmp_path / "cache", other).fill(other, Clips(-1), progress=False)

    monkeypatch.setattr(cache_module, "exclusively", followed_at_once)
    states = cache(tmp_path / "cache", model).fill(model, Clips(-1), progress=False).states
    torch.testing.assert_close(states.tensors(), cache(whole, model).open().states.tensors())
    assert cache(tmp_path / "cache", other).open()


def test_mapped_states_equal_states_in_memory(whole) -> None:
    model = recognizer()
    found = cache(whole, model).open()
    in_memory = encode_videos(model, Clips(-1), batch_size=BLOCK, progress=False)
    assert found.encoded == 0 and found.bad == ()
    torch.testing.assert_close(found.states.tensors(), in_memory.tensors(), rtol=0, atol=1e-5)
    assert found.size == sum(tensor.nbytes for tensor in in_memory.tensors().values())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the system's list of mappings")
def test_mappings_are_read_only(whole) -> None:
    """The system counts a writable private mapping as memory, so a cache larger than memory could not be opened."""
    found = cache(whole, recognizer()).open()
    mappings = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(whole) in line]
    assert mappings and {permissions for _, permissions, *_ in mappings} <= {"r--p", "r--s"}
    assert found.states.query["frames"].isfinite().all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_dtype_round_trips(tmp_path, dtype) -> None:
    values = torch.arange(2 * 3 * 5).view(2, 3, 5).to(dtype)
    files = StateFiles(tmp_path, ["a", "b"], block_size=1)
    files.create({}, {"x": values[:1]})
    for block in (1, 0):
        files.write(block, {"x": values[block : block + 1]}, set())
    assert files.problem(0) is None and torch.equal(files.open()[0].query["x"], values)
    if dtype != torch.bfloat16:  # numpy has no such type
        assert np.array_equal(np.load(tmp_path / "x.npy"), values.numpy())


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-5])])
def test_lost_or_truncated_file_raises(filled, spoil, monkeypatch) -> None:
    found = cache(filled, recognizer())
    monkeypatch.setattr(found.files, "problem", lambda block: None)
    spoil(filled / "frames.npy")
    with pytest.raises(DmgalError, match=r"cannot be opened(.|\n)*frames.npy"):
        found.open()


def test_complete_cache_encodes_nothing(filled) -> None:
    before = content(filled)
    model = recognizer()
    assert cache(filled, model).fill(model, Clips(0), progress=False).encoded == 0
    assert content(filled) == before


def test_unusable_blocks_are_named_and_encoded_again(filled, whole, caplog) -> None:
    caplog.set_level("INFO")
    model = recognizer()
    data = filled / "frames.npy"
    spoiled = bytearray(data.read_bytes())
    spoiled[np.load(data, mmap_mode="r").offset] ^= 1  # of block 0
    data.write_bytes(spoiled[:-5])  # of the last block
    record = filled / "blocks" / "00002.json"
    record.write_text(record.read_text().replace("video 9", "another 9"))
    with pytest.raises(DmgalError, match="3 of 6 blocks differ") as error:
        cache(filled, model).open()
    for words in ("block 0: frames.npy differs from its checksum", "changed: video 9", "block 5: frames.npy is trunc"):
        assert words in str(error.value)
    assert cache(filled, model).fill(model, Clips(-1)).encoded == BLOCK + BLOCK + VIDEOS % BLOCK
    assert "3 blocks are encoded again" in caplog.text
    assert content(filled).keys() == content(whole).keys() and cache(filled, model).open()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("head_weights", lambda model: setattr(model, "head", killed_cache.BiMHM("both"))),
        ("settings", lambda model: setattr(model.head, "center", "none")),
        ("pooling", lambda model: setattr(model.encoder, "pooling", "patch_mean")),
        ("backbone_weights", lambda model: next(model.parameters()).data.add_(1.0)),
    ],
)
def test_states_of_another_model_are_rejected(filled, what, change, caplog) -> None:
    caplog.set_level("INFO")
    model = recognizer()
    change(model)
    with pytest.raises(DmgalError, match=what):
        cache(filled, model).open()
    (filled / "not_ours.npy").write_text("kept")
    assert cache(filled, model).fill(model, Clips(-1)).encoded == VIDEOS
    assert what in caplog.text and (filled / "not_ours.npy").exists()
    in_memory = encode_videos(model, Clips(-1), batch_size=BLOCK, progress=False)
    torch.testing.assert_close(cache(filled, model).open().states.tensors(), in_memory.tensors())


def test_full_disk_raises_and_keeps_written_blocks(tmp_path, monkeypatch) -> None:
    model, seek, calls = recognizer(), state_files._seek_row, []

    def full(*arguments) -> int:
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return seek(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(state_files, "_seek_row", full)  # called before each write
        with pytest.raises(DmgalError, match="The disk is full") as error:
            cache(tmp_path / "cache", model).fill(model, Clips(-1), progress=False)
    assert "4 of 6 blocks" in str(error.value)
    assert cache(tmp_path / "cache", model).fill(model, Clips(0), progress=False).encoded == VIDEOS - 2 * BLOCK


def test_half_precision_has_its_own_key(whole, tmp_path) -> None:
    model = recognizer()
    half = cache(tmp_path / "half", model, half=True)
    found = half.fill(model, Clips(-1), progress=False)
    exact = cache(whole, model).open()
    assert found.states.query["frames"].dtype == torch.float16 and 2 * found.size == exact.size
    assert "inexact" in json.loads((tmp_path / "half" / KEY).read_text())["kept_as"]
    with pytest.raises(DmgalError, match="kept_as"):
        cache(tmp_path / "half", model).open()
    labels = [number % 4 for number in range(VIDEOS)]
    sampler = EpisodeSampler(labels, 3, 1, 1, 50, 0)
    both = [evaluate(model, states.states, sampler, progress=False, dtype=torch.float32) for states in (found, exact)]
    assert (both[0].accuracies != both[1].accuracies).double().mean() < 0.1


def test_float16_overflow_raises(tmp_path) -> None:
    model = recognizer()
    model.encoder.backbone.proj.data.mul_(1e9)
    with pytest.raises(DmgalError, match="beyond 65504 in frames"):
        cache(tmp_path / "half", model, half=True).fill(model, Clips(-1), progress=False)


def test_bad_videos_are_remembered(tmp_path) -> None:
    model = recognizer()
    first = cache(tmp_path, model).fill(model, Clips(-1), progress=False, bad=lambda: [3, 20])
    assert first.bad == (3, 20) and cache(tmp_path, model).open().bad == (3, 20)


def test_a_key_is_of_everything_that_shapes_states() -> None:
    key = describe(recognizer(), clips={"num_frames": 4})
    assert key == describe(recognizer(), clips={"num_frames": 4})
    assert {"backbone_weights", "head_weights", "settings", "pooling", "torch", "clips"} <= key.keys()
    assert key["backbone"] == "tiny-clip" and isinstance(StateCache(Path(), key, []).key, dict)


HOSTILE = {
    "key of pipes": (KEY, os.mkfifo),
    "key not JSON": (KEY, lambda path: path.write_text("{")),
    "key of a list": (KEY, lambda path: path.write_text("[]")),
    "tensors of a number": (KEY, lambda path: path.write_text('{"tensors": 5}')),
    "tensor outside": (KEY, lambda path: path.write_text('{"tensors": {"../../victim": ["float32", [1]]}}')),
    "tensor of no dtype": (KEY, lambda path: path.write_text('{"tensors": {"a": ["save", [1]]}}')),
    "record of pipes": ("blocks/00000.json", os.mkfifo),
    "record of numbers": ("blocks/00000.json", lambda path: path.write_text('{"videos": 3, "bad": 1, "checksums": 2}')),
    "record of a bad video": (
        "blocks/00000.json",
        lambda path: path.write_text('{"videos": [], "bad": [99999], "checksums": {}}'),
    ),
}


@pytest.mark.parametrize(("name", "make"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_of_a_cache_is_replaced(tmp_path, whole, name, make):
    victim = tmp_path.parent / "victim.npy"
    victim.write_text("not of the cache")
    folder = Path(shutil.copytree(whole, tmp_path / "cache"))
    (folder / name).unlink()
    make(folder / name)
    model = recognizer()
    with pytest.raises(DmgalError):
        cache(folder, model).open()
    assert cache(folder, model).fill(model, Clips(-1), progress=False).encoded > 0
    assert len(cache(folder, model).open().states.tensors()) > 0 and victim.read_text() == "not of the cache"
