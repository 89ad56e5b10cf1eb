"""Checkpoints: whole or passed over, the newest ones kept, and never one of a format that is not known."""

from __future__ import annotations

import json

import pytest
import torch

import dmgal.recipes.run.checkpoints as module
from dmgal.errors import DmgalError
from dmgal.recipes.run.checkpoints import INDEX, Checkpoints

TENSORS = {"model": {"w": torch.arange(6.0).view(2, 3)}, "optimizer": {"0.0.step": torch.tensor(3.0)}}


@pytest.fixture
def checkpoints(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (2, 4, 6):
        saved.save(step, {**TENSORS, "model": {"w": TENSORS["model"]["w"] + step}}, {"step": step, "best": 0.1 + 0.2})
    return saved


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_newest_checkpoint_is_bit_identical_and_oldest_is_deleted(checkpoints):
    found = checkpoints.newest()
    assert found.progress == {"step": 6, "best": 0.1 + 0.2}
    assert torch.equal(found.tensors["model"]["w"], TENSORS["model"]["w"] + 6)
    assert torch.equal(found.tensors["optimizer"]["0.0.step"], torch.tensor(3.0))
    assert names(checkpoints) == ["step_00000004", "step_00000006"]


def test_tensors_that_share_memory_are_saved(checkpoints):
    tied, whole = torch.arange(4.0), torch.arange(6.0)
    model = {"a": tied, "b": tied, "row": whole[:3], "rest": whole[2:], "transposed": whole.view(2, 3).T}
    checkpoints.save(8, {"model": model}, {"step": 8})
    found = checkpoints.newest().tensors["model"]
    assert found.keys() == model.keys() and all(torch.equal(found[name], model[name]) for name in model)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "truncated": lambda place: truncate(place / "model.safetensors"),
    "other bits": lambda place: flip_a_bit(place / "optimizer.safetensors"),
    "missing": lambda place: (place / "model.safetensors").unlink(),
    "half an index": lambda place: truncate_to_half(place / INDEX),
    "no index": lambda place: (place / INDEX).unlink(),
    "changed progress": lambda place: (place / INDEX).write_text((place / INDEX).read_text().replace("0.3", "0.4")),
}


def truncate_to_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_reported_and_skipped(checkpoints, damage, caplog):
    place = checkpoints.folder / "step_00000006"
    DAMAGES[damage](place)
    assert checkpoints.newest().progress["step"] == 4
    assert str(place) in caplog.text
    checkpoints.save(6, TENSORS, {"step": 6})  # training comes here again
    assert checkpoints.newest().progress == {"step": 6}


def test_unreadable_checkpoint_is_reported_and_skipped(checkpoints, monkeypatch, caplog):
    content, place = module._content, checkpoints.folder / "step_00000006"

    def unreadable(path):
        if path.parent == place:
            raise OSError(5, "Input/output error", str(path))
        return content(path)

    monkeypatch.setattr(module, "_content", unreadable)
    assert checkpoints.newest().progress["step"] == 4
    assert f"{place} is damaged ([Errno 5] Input/output error" in caplog.text


def test_only_damaged_checkpoints_raise(checkpoints, tmp_path):
    for place in checkpoints.folder.iterdir():
        truncate(place / "model.safetensors")
    with pytest.raises(DmgalError, match="2 damaged"):
        checkpoints.newest()
    assert Checkpoints(tmp_path / "nothing").newest() is None


def test_newer_format_raises(checkpoints):
    index = checkpoints.folder / "step_00000006" / INDEX
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 99, "dmgal": "9.9"}))
    with pytest.raises(DmgalError, match=r"format 99, dmgal 9\.9"):
        checkpoints.newest()


def test_amending_progress_keeps_tensors(checkpoints):
    checkpoints.amend(6, {"step": 6, "best": 0.9})
    found = checkpoints.newest()
    assert found.progress == {"step": 6, "best": 0.9} and torch.equal(
        found.tensors["model"]["w"][0, 0], torch.tensor(6.0)
    )


def test_incomplete_folders_of_a_kill_are_cleaned_up(checkpoints):
    """Half written, half deleted, and moved aside where the system cannot swap folders."""
    for name in (".step_00000008.partial", ".step_00000002.partial"):
        (checkpoints.folder / name).mkdir()
    (checkpoints.folder / "step_00000006").rename(checkpoints.folder / ".step_00000006.old")
    assert checkpoints.newest().progress["step"] == 4
    checkpoints.clean_up()
    assert names(checkpoints) == ["step_00000004", "step_00000006"]
    assert checkpoints.newest().progress["step"] == 6


def test_full_disk_keeps_earlier_checkpoints(checkpoints, monkeypatch):
    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmgal.recipes.run.checkpoints.write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(8, TENSORS, {"step": 8})
    assert checkpoints.newest().progress["step"] == 6
    assert names(checkpoints) == ["step_00000004", "step_00000006"]
