"""Savings from encoding every video once: plain evaluation of each episode against evaluation from stored states.

    python -m dmgal.bench.evaluation                                  about twelve minutes
    python -m dmgal.bench.evaluation --plain-episodes 10000           all plain episodes: hours
    python -m dmgal.bench.evaluation --episodes 1000 --videos 240     scaled down at the same ratio

Every measurement has its own process, with the same weights, dtype, threads and frames. Plain evaluation encodes the
support and the query of every episode, one query per class. Its episodes cost the same, so ``episodes_run`` of them are
run and the time is scaled. The other evaluation is run completely: weight hash, encoding, cache, episodes, comparison.
Clips are in memory, so the repeated decoding of plain evaluation is not counted. Ratios are of CPU time. With E
episodes of V videos out of U they are at most ``E V / U``: 41.7 at 1 shot and 125 at 5 for 10,000 : 2,400.

The time of ViT-B/16 is estimated from parts measured on its shapes. For moving shapes it is the wall time of a complete
``dmgal evaluate`` in two processes. Writes ``bench/results/evaluation.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor
from xxhash import xxh3_64_hexdigest

from dmgal.adapters import DmgalConfig, SmgaConfig
from dmgal.backbones import FrameEncoder, load_backbone, use_memory_efficient_gelu
from dmgal.bench import measuring
from dmgal.bench.measuring import hardware, median_with_interval, write_report
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.evaluation import evaluate
from dmgal.episodes.evaluation.accuracy import TASKS_AT_A_TIME
from dmgal.episodes.evaluation.cache import StateCache
from dmgal.episodes.evaluation.identity import describe
from dmgal.episodes.evaluation.states import PrecomputedStates, compare_tasks, precompute_states, videos_at_a_time
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.sampler import EpisodeIndices

FRAMES, WAYS, CLASSES, SHOTS = 8, 5, 24, (1, 5)
WANTED = {("smga", 1): 38.0, ("smga", 5): 100.0, ("cmga", 1): 33.0, ("cmga", 5): 80.0}
CASES = {"smga": SmgaConfig, "cmga": DmgalConfig}
"""Adapters by name, both with Bi-MHM: one without task layer, and DMGAL-Adapter with a Cmga after the last block."""
NEAR = 1e-5
Part = Literal["all", "plain", "kept", "pieces"]
PARTS: tuple[Part, Part] = ("plain", "kept")


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    episodes: int = 10_000
    """Number of episodes."""
    videos: int = 2_400
    """Number of videos that the episodes are drawn from."""
    plain_episodes: int = 150
    """Number of episodes for plain evaluation, whose time is extrapolated linearly."""
    rounds: int = 3
    """Number of rounds, in which both kinds of evaluation alternate."""
    threads: int = 1
    """Number of torch threads of each process."""
    seed: int = 0
    """Seed of the clips and of the episodes."""
    only: str = ""
    """Cases on tiny-clip whose names begin so, such as smga-1 (1-shot). All if empty."""
    pieces: bool = True
    """Estimate ViT-B/16 as well, which takes some minutes."""
    moving_shapes: bool = True
    """Time the full command as well."""
    data: Path | None = None
    """Folder of moving shapes, generated if it is missing. None: a temporary folder."""
    processes: int = 2
    """Number of processes that encode in the full command."""
    out: Path = Path(__file__).parent / "results" / "evaluation.json"
    """File for the results."""
    part: Part = "all"
    """Part to measure. This and the following options are set for the measuring processes."""
    case: Literal["smga", "cmga"] = "smga"
    """Adapter, without or with a task layer."""
    shots: int = 1
    """Support videos per class."""
    work: Path = Path()
    """Folder for the logits of both kinds of evaluation."""


def recognizer(case: str, backbone: str = "tiny-clip") -> FewShotRecognizer:
    """Return a recognizer with reproducible adapter weights that have an effect."""
    import peft

    torch.manual_seed(0)
    model = peft.get_peft_model(load_backbone(backbone), CASES[case](num_frames=FRAMES))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "dmgal_" in name:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return FewShotRecognizer(FrameEncoder(use_memory_efficient_gelu(model)), BiMHM("video", 10.0, eps=0.0)).eval()


def random_clips(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return clips ``(V, T, 3, h, w)``, uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, FRAMES, 3, *size), dtype=torch.uint8, generator=generator)


def tasks(options: Options) -> EpisodeSampler:
    """Return tasks with one query per class."""
    labels = [video * CLASSES // options.videos for video in range(options.videos)]
    return EpisodeSampler(labels, WAYS, options.shots, 1, options.episodes, options.seed)


@torch.no_grad()
def plain(options: Options) -> dict[str, object]:
    """Evaluate by encoding the videos of every episode."""
    model = recognizer(options.case)
    clips = random_clips(options.videos, model.encoder.image_size, options.seed)
    sampler, logits = tasks(options), []
    count = min(options.plain_episodes, options.episodes)
    model.encode(clips[:WAYS])  # warm-up, because the first call of a process does more work
    clock = Clock()
    for task in (sampler[number] for number in range(count)):
        state = model.encode(clips[[*task.support, *task.query]])
        support, query = state.split([len(task.support), len(task.query)])
        logits.append(model.compare(support, torch.tensor(task.support_labels), query).logits)
        logits[-1].argmax(1)
    seconds = clock.seconds()
    save_file({"logits": torch.stack(logits)}, options.work / "plain.safetensors")
    return {"episodes_run": count, **{name: value * options.episodes / count for name, value in seconds.items()}}


@torch.no_grad()
def kept(options: Options) -> dict[str, object]:
    """Evaluate by encoding every video once into a cache."""
    model = recognizer(options.case)
    clips = random_clips(options.videos, model.encoder.image_size, options.seed)
    sampler = tasks(options)
    model.encode(clips[:WAYS])
    whole = Clock()
    clock = Clock()
    names = [f"video {number}" for number in range(options.videos)]
    cache = StateCache(options.work / "cache", describe(model), names, videos_at_a_time("cpu"))
    parts = {"hash_weights": clock.seconds()["cpu_seconds"]}
    clock = Clock()
    states = cache.fill(model, clips, progress=False).states
    parts["encode_and_write"] = clock.seconds()["cpu_seconds"]
    clock = Clock()
    answers = evaluate(model, states, sampler, progress=False).answers
    parts["draw_and_compare"] = clock.seconds()["cpu_seconds"]
    seconds = whole.seconds()
    clock = Clock()
    list(sampler)
    parts["of_which_draw"] = clock.seconds()["cpu_seconds"]
    clock = Clock()
    some = clips[: 20 * videos_at_a_time("cpu")]
    for batch in some.split(videos_at_a_time("cpu")):
        precompute_states(model, batch)
    parts["encode_alone"] = clock.seconds()["cpu_seconds"] * len(clips) / len(some)
    count = min(options.plain_episodes, options.episodes)
    logits = logits_of(model, states, [sampler[number] for number in range(count)])
    assert answers is not None
    offered, answered = answers.offered[:count, None].expand(-1, WAYS, -1), answers.predicted.view(-1, WAYS)[:count]
    predicted = (offered == answered[..., None]).int().argmax(2)  # (E, Q): indices of a task's classes
    save_file({"logits": logits, "predicted": predicted}, options.work / "kept.safetensors")
    return {
        **seconds,
        "parts_cpu_seconds": parts,
        "cache_bytes": sum(tensor.nbytes for tensor in states.tensors().values()),
    }


def logits_of(model: FewShotRecognizer, states: PrecomputedStates, some: list[EpisodeIndices]) -> Tensor:
    """Return logits ``(E, Q, n_way)`` as `evaluate` computes them."""
    labels = torch.tensor(some[0].support_labels)
    places = [
        tuple(torch.tensor([getattr(task, side) for task in part]) for side in ("support", "query"))
        for part in (some[start : start + TASKS_AT_A_TIME] for start in range(0, len(some), TASKS_AT_A_TIME))
    ]
    return torch.cat(
        [
            compare_tasks(model, states.support, labels, states.query.select(query.flatten()), len(query), support)
            for support, query in places
        ]
    )


@torch.no_grad()
def pieces(options: Options) -> dict[str, object]:
    """Measure the cost of a video and a 5-way task on a random ViT-B/16, and estimate the total."""
    model = recognizer(options.case, "open_clip:ViT-B-16")
    clips = random_clips(2, model.encoder.image_size, options.seed)
    states = precompute_states(model, clips)
    video = {
        "encode": cpu_seconds(lambda: model.encode(clips), 2) / len(clips),
        "encode_for_cache": cpu_seconds(lambda: precompute_states(model, clips), 2) / len(clips),
        "write": cpu_seconds(lambda: write_states(states, options.work / "states.raw"), 3) / len(clips),
    }
    hashing = cpu_seconds(lambda: describe(model), 1)
    kept_seconds = hashing + options.videos * (video["encode_for_cache"] + video["write"])
    some = replace(options, videos=10 * CLASSES, episodes=20)
    many, state = states.select(torch.arange(some.videos) % len(clips)), model.encode(clips)
    by_shots = {}
    for shots in SHOTS:
        sampler, labels = tasks(replace(some, shots=shots)), torch.arange(WAYS).repeat_interleave(shots)
        task = cpu_seconds(partial(evaluate, model, many, sampler, progress=False), 3) / some.episodes
        support, query = state.select(torch.arange(len(labels)) % 2), state.select(torch.arange(WAYS) % 2)
        plain_compare = cpu_seconds(partial(model.compare, support, labels, query), 3)
        per_task = len(labels) + WAYS
        plain_seconds = options.episodes * (per_task * video["encode"] + plain_compare)
        by_shots[f"{shots}-shot"] = {
            "seconds_per_task": {"draw_gather_and_compare": task, "plain_compare": plain_compare},
            "times_plain_reckoned": round(plain_seconds / (kept_seconds + options.episodes * task), 2),
            "wanted": WANTED[options.case, shots],
            "limit": round(options.episodes * per_task / options.videos, 2),
        }
    return {
        "case": options.case,
        "seconds_to_hash_weights": hashing,
        "seconds_per_video": video,
        "cache_bytes_per_video": sum(tensor[:1].nbytes for tensor in states.tensors().values()),
        **by_shots,
    }


def write_states(states: PrecomputedStates, path: Path) -> None:
    """Write bytes and compute their checksum as a cache does."""
    with path.open("wb") as file:
        for tensor in states.tensors().values():
            data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
            xxh3_64_hexdigest(data)
            file.write(data)


class Clock:
    """Clock that starts when it is created."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """Return the processor and wall-clock seconds since then."""
        return {"cpu_seconds": time.process_time() - self._cpu, "wall_seconds": time.perf_counter() - self._wall}


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the minimum over rounds, after a warm-up round."""
    work()
    return min(measuring.cpu_seconds(work) for _ in range(rounds))


def in_a_process(options: Options) -> dict[str, float]:
    """Measure one part in a fresh process."""
    words = [sys.executable, "-m", "dmgal.bench.evaluation"]
    for name in ("episodes", "videos", "plain_episodes", "threads", "seed", "part", "case", "shots", "work"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    environ = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    output = subprocess.run(words, env=environ, check=True, stdout=subprocess.PIPE, text=True).stdout
    numbers: dict[str, float] = json.loads(output.splitlines()[-1])
    return numbers


def agreement(work: Path) -> dict[str, object]:
    """Compare the logits and answers of both evaluations on the plain one's episodes."""
    plain_way, kept_way = (load_file(work / f"{name}.safetensors") for name in ("plain", "kept"))
    one, other = plain_way["logits"], kept_way["logits"]
    best = one.topk(2, dim=2).values
    changed = one.argmax(2) != kept_way["predicted"]
    margin = best[..., 0] - best[..., 1]
    return {
        "episodes": len(one),
        "largest_logit": one.abs().max().item(),
        "largest_difference": (one - other).abs().max().item(),
        "predictions": changed.numel(),
        "changed": int(changed.sum()),
        "changed_with_a_margin_above_1e-5": int((changed & (margin > NEAR)).sum()),
        "margins_below_1e-5": int((margin <= NEAR).sum()),
    }


def compared(case: str, shots: int, options: Options) -> dict[str, object]:
    """Measure both evaluations of one case in turn."""
    with tempfile.TemporaryDirectory() as folder:
        options = replace(options, case=case, shots=shots, work=Path(folder))  # type: ignore[arg-type]
        rounds = []
        for _ in range(options.rounds):
            shutil.rmtree(options.work / "cache", ignore_errors=True)
            rounds.append({part: in_a_process(replace(options, part=part)) for part in PARTS})
        ratios = {
            clock: median_with_interval([found["plain"][clock] / found["kept"][clock] for found in rounds])
            for clock in ("cpu_seconds", "wall_seconds")
        }
        result = {
            "case": case,
            "shots": shots,
            "times_plain": ratios["cpu_seconds"],
            "times_plain_wall": ratios["wall_seconds"],
            "wanted": WANTED[case, shots],
            "limit": round(options.episodes * WAYS * (shots + 1) / options.videos, 2),
            "rounds": rounds,
            "agreement": agreement(Path(folder)),
        }
    print(f"{case}, {shots}-shot: {ratios['cpu_seconds']['median']}x of at most {result['limit']}x", flush=True)
    return result


def moving_shapes(folder: Path, options: Options) -> dict[str, object]:
    """Time the full command, including the start of its processes, on 720 videos."""
    data, run, processes = options.data or folder / "moving_shapes", folder / "run", options.processes
    recipe = [sys.executable, "-m", "dmgal.recipes.train", "method/dmgal_adapter", "data/moving_shapes"]
    recipe += ["--data.root", str(data), "--train.steps", "1", "--train.validation-episodes", "10", "--quiet"]
    subprocess.run([*recipe, "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = [sys.executable, *(launcher if processes > 1 else []), "-m", "dmgal.recipes.evaluate", str(run)]
    words += ["--episodes", str(options.episodes), "--cache", str(folder / "states"), "--quiet"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    start = time.perf_counter()
    subprocess.run(words, env=environ, check=True)
    seconds = {"wall_seconds": round(time.perf_counter() - start, 1), "wanted": 60}
    return {"method": "DMGAL-Adapter, 5-way 1-shot", "processes": processes, "kinds_of_tasks": 3, **seconds}


def main() -> None:
    """Measure and write the report, or measure one part for the parent process."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    if options.part != "all":
        print(json.dumps({"plain": plain, "kept": kept, "pieces": pieces}[options.part](options)))
        return
    numbers = {
        name: getattr(options, name) for name in ("episodes", "videos", "plain_episodes", "rounds", "threads", "seed")
    }
    report: dict[str, object] = {**hardware(), **numbers, "frames": FRAMES, "ways": WAYS, "queries_per_class": 1}
    cases = [(case, shots) for case, shots in WANTED if f"{case}-{shots}".startswith(options.only)]
    report["tiny_clip"] = [compared(case, shots, options) for case, shots in cases]
    if options.pieces:
        with tempfile.TemporaryDirectory() as folder:
            part = replace(options, part="pieces", work=Path(folder))
            found = [in_a_process(replace(part, case=case)) for case in CASES]  # type: ignore[arg-type]
        report["vit_b_16_reckoned_from_measured_pieces"] = found
    if options.moving_shapes:
        with tempfile.TemporaryDirectory() as folder:
            report["moving_shapes"] = moving_shapes(Path(folder), options)
    write_report(report, options.out, show=False)


if __name__ == "__main__":
    main()
