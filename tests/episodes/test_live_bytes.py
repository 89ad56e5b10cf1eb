"""Exact count of the bytes of live tensors, in the forward and the backward pass."""

from __future__ import annotations

import torch

from dmgal.episodes.two_pass import memory as device_memory
from dmgal.episodes.two_pass.memory import free_bytes, is_out_of_memory, memory_of

CPU = torch.device("cpu")
MEGABYTE = torch.empty(250_000)  # float32


def test_peak_counts_tensors_alive_together():
    def work():
        one = MEGABYTE + 1
        two = one * 2
        del one
        return two.view(500, 500).t() + 1  # a view needs no memory

    assert memory_of(work, CPU) == (2_000_000, 1_000_000)


def test_existing_tensors_do_not_count():
    assert memory_of(lambda: (MEGABYTE.view(-1), MEGABYTE[5:], MEGABYTE.detach()), CPU) == (0, 0)


def test_graph_memory_is_freed_by_backward():
    leaf = torch.ones(250_000, requires_grad=True)
    held = memory_of(lambda: leaf.exp().exp().sum(), CPU)  # both results are saved
    assert 2_000_000 <= held.held <= 2_000_100
    both = memory_of(lambda: torch.autograd.grad(leaf.exp().exp().sum(), leaf), CPU)
    assert 1_000_000 <= both.held <= 1_000_100 and 3_000_000 <= both.peak <= 4_000_100


def test_free_memory_is_plausible():
    assert 10**7 < free_bytes(CPU) < 10**14


def test_processes_of_one_machine_share_memory(monkeypatch):
    monkeypatch.setattr(device_memory, "_free_in_container", lambda: [8 * 10**6])
    alone = free_bytes(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert alone == 8 * 10**6 and free_bytes(CPU) == 2 * 10**6


def test_inactive_files_of_a_container_count_as_free(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    assert device_memory._free_in_container(tmp_path) == []
    (tmp_path / "memory.current").write_text("900\n")
    assert device_memory._free_in_container(tmp_path) == [100]
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 50\ninactive_file 550\n")
    assert device_memory._free_in_container(tmp_path) == [650]
    (tmp_path / "memory.max").write_text("max\n")
    assert device_memory._free_in_container(tmp_path) == []


def test_out_of_memory_errors_are_recognized():
    refused = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
    for error in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), refused):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
