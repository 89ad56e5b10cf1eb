"""What encoding every video once saves: plain evaluation, as peers do it, against evaluation from kept states.

    python -m dmgal.bench.evaluation                                  in full: an hour of one core
    python -m dmgal.bench.evaluation --plain-episodes 200             the plain side from fewer episodes, per episode
    python -m dmgal.bench.evaluation --episodes 1000 --videos 240     scaled down at the same ratio

Every measurement is a process of its own, with the same weights, type, threads and frames. The plain side encodes the
support and the query of every episode, one query per class. The other side's time holds all that it does: hashing the
weights, encoding, writing the cache, reading it, drawing episodes, comparing. Clips lie in memory on both sides, so
decoding, which plain evaluation repeats as often, is left out in its favor. Ratios are of CPU time.

Limits: with E episodes of V videos out of U, at most ``E V / U``: 41.7 at 1 shot and 125 at 5 for 10,000 : 2,400.

ViT-B/16 is reckoned from pieces that are measured on its shapes: a video's encoding, its hashing and writing, a task's
comparison. Moving shapes: the wall time of a whole ``dmgal evaluate``. Writes ``bench/results/evaluation.json``.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmgal.adapters import DmgalConfig, SmgaConfig
from dmgal.backbones import FrameEncoder, VideoState, load_backbone
from dmgal.bench.measuring import hardware, median_with_interval
from dmgal.episodes import EpisodeSampler, FewShotRecognizer, evaluate
from dmgal.episodes.cache import StateCache
from dmgal.episodes.cache_key import describe
from dmgal.episodes.heads import BiMHM
from dmgal.episodes.sides import compare_tasks, encode_sides, sides, videos_at_a_time
from dmgal.episodes.store_blocks import checksum

FRAMES, WAYS, CLASSES, TASKS_CHECKED = 8, 5, 24, 200
WANTED = {("smga", 1): 38.0, ("smga", 5): 100.0, ("cmga", 1): 33.0, ("cmga", 5): 80.0}
CASES = {"smga": SmgaConfig, "cmga": DmgalConfig}
"""By name: no task layer and a pair head; DMGAL-Adapter with a Cmga behind the last block. Both under Bi-MHM."""
NEAR = 1e-5
Part = Literal["all", "plain", "kept", "pieces"]
PARTS: tuple[Part, Part] = ("plain", "kept")


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    episodes: int = 10_000
    videos: int = 2_400
    plain_episodes: int | None = None
    """Of the plain side, whose time is then taken to grow with their number; None: all."""
    rounds: int = 3
    """Both sides are measured so often, in turns."""
    threads: int = 1
    seed: int = 0
    pieces: bool = True
    """Reckon ViT-B/16, too; a minute or more."""
    moving_shapes: Path | None = None
    """Folder for videos and a run, to time the whole command on; None: not done."""
    out: Path = Path(__file__).parent / "results" / "evaluation.json"
    part: Part = "all"
    """This and what follows are set for the processes that measure one part."""
    case: Literal["smga", "cmga"] = "smga"
    shots: int = 1
    work: Path = Path()


def recognizer(case: str, backbone: str = "tiny-clip") -> FewShotRecognizer:
    """With adapter weights that do something, the same each time."""
    import peft  # behind dmgal, which mends what a CUDA torchvision breaks

    torch.manual_seed(0)
    model: Any = load_backbone(backbone)
    model = peft.get_peft_model(model, CASES[case](num_frames=FRAMES))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "dmgal_" in name:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return FewShotRecognizer(FrameEncoder(model), BiMHM("video", 10.0, eps=0.0)).eval()


def random_clips(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """``(V, T, 3, h, w)``, uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, FRAMES, 3, *size), dtype=torch.uint8, generator=generator)


def tasks(options: Options) -> EpisodeSampler:
    """One query per class."""
    labels = [video * CLASSES // options.videos for video in range(options.videos)]
    return EpisodeSampler(labels, WAYS, options.shots, 1, options.episodes, options.seed)


@torch.no_grad()
def plain(options: Options) -> dict[str, Any]:
    """Every episode encodes its videos."""
    model = recognizer(options.case)
    clips = random_clips(options.videos, model.encoder.image_size, options.seed)
    sampler, logits = tasks(options), []
    count = min(options.plain_episodes or options.episodes, options.episodes)
    model.encode(clips[:WAYS])  # once, uncounted: the first call of a process does more
    clock = Clock()
    for task in (sampler[number] for number in range(count)):
        state = model.encode(clips[[*task.support, *task.query]])
        support, query = state.split([len(task.support), len(task.query)])
        logits.append(model.compare(support, torch.tensor(task.support_labels), query).logits)
        logits[-1].argmax(1)
    seconds = clock.seconds()
    save_file({"logits": torch.stack(logits[:TASKS_CHECKED])}, options.work / "plain.safetensors")
    return {"episodes_run": count, **{name: value * options.episodes / count for name, value in seconds.items()}}


@torch.no_grad()
def kept(options: Options) -> dict[str, Any]:
    """Every video is encoded once, on the way into a cache."""
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
    states = cache.fill(model, list(clips), progress=False).states  # type: ignore[arg-type]
    parts["encode_and_write"] = clock.seconds()["cpu_seconds"]
    clock = Clock()
    evaluate(model, states, sampler, progress=False)
    parts["draw_and_compare"] = clock.seconds()["cpu_seconds"]
    seconds = whole.seconds()
    clock = Clock()
    list(sampler)
    parts["of_which_draw"] = clock.seconds()["cpu_seconds"]
    clock = Clock()
    for batch in clips.split(cache.block_size):
        encode_sides(model, batch)
    parts["encode_alone"] = clock.seconds()["cpu_seconds"]
    save_file({"logits": logits_of(model, states, sampler)}, options.work / "kept.safetensors")
    return {**seconds, "parts_cpu_seconds": parts, "cache_bytes": sum(tensor.nbytes for tensor in states.values())}


def logits_of(model: FewShotRecognizer, states: VideoState, sampler: EpisodeSampler) -> Tensor:
    """Of the first episodes, as `evaluate` computes them."""
    some = [sampler[number] for number in range(min(TASKS_CHECKED, len(sampler)))]
    support, query = (torch.tensor([getattr(task, side) for task in some]) for side in ("support", "query"))
    parts = [part.select(places.flatten()) for part, places in zip(sides(states), (support, query), strict=True)]
    return compare_tasks(model, parts[0], torch.tensor(some[0].support_labels), parts[1], len(some))


@torch.no_grad()
def pieces(options: Options) -> dict[str, Any]:
    """ViT-B/16 of random weights: what a video and a task cost, 5 ways, and what that makes of the whole."""
    model = recognizer(options.case, "open_clip:ViT-B-16")
    clips = random_clips(2, model.encoder.image_size, options.seed)
    encode = cpu_seconds(lambda: model.encode(clips), 2) / len(clips)
    encode_for_cache = cpu_seconds(lambda: encode_sides(model, clips), 2) / len(clips)
    states = encode_sides(model, clips)
    support, query = sides(states)
    size, labels = 16, torch.arange(WAYS).repeat_interleave(options.shots)
    places = torch.arange(size * len(labels)) % 2, torch.arange(size * WAYS) % 2
    chosen = support.select(places[0]), query.select(places[1])
    compare = cpu_seconds(lambda: compare_tasks(model, chosen[0], labels, chosen[1], size), 3) / size
    select = cpu_seconds(lambda: (support.select(places[0]), query.select(places[1])), 3) / size
    plain_state = model.encode(clips)
    one = plain_state.select(torch.arange(len(labels)) % 2), plain_state.select(torch.arange(WAYS) % 2)
    plain_compare = cpu_seconds(lambda: model.compare(one[0], labels, one[1]), 3)
    write = cpu_seconds(lambda: write_states(states, options.work / "states.raw"), 3) / len(clips)
    per_task = options.episodes * (len(labels) + WAYS)
    plain_seconds = per_task * encode + options.episodes * plain_compare
    kept_seconds = options.videos * (encode_for_cache + write) + options.episodes * (compare + select)
    return {
        "seconds_per_video": {"encode": encode, "encode_for_cache": encode_for_cache, "write": write},
        "seconds_per_task": {"compare": compare, "gather": select, "plain_compare": plain_compare},
        "cache_bytes_per_video": sum(tensor[:1].nbytes for tensor in states.values()),
        "times_plain_reckoned": round(plain_seconds / kept_seconds, 2),
        "limit": round(per_task / options.videos, 2),
    }


def write_states(states: VideoState, path: Path) -> None:
    """As a cache does: the bytes and their checksum."""
    with path.open("wb") as file:
        for tensor in states.values():
            data = tensor.contiguous().flatten().view(torch.uint8).numpy()
            checksum(data)
            file.write(memoryview(data))  # type: ignore[arg-type]


class Clock:
    """From now on."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def seconds(self) -> dict[str, float]:
        return {"cpu_seconds": time.process_time() - self._cpu, "wall_seconds": time.perf_counter() - self._wall}


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """The least of some rounds, after one that is not counted."""
    work()
    found = []
    for _ in range(rounds):
        clock = Clock()
        work()
        found.append(clock.seconds()["cpu_seconds"])
    return min(found)


def in_a_process(options: Options) -> dict[str, Any]:
    """One part, measured in a fresh process."""
    words = [sys.executable, "-m", "dmgal.bench.evaluation", "--no-pieces"]
    for name, value in asdict(options).items():
        if name not in ("pieces", "moving_shapes", "out", "rounds") and value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    output = subprocess.run(words, env=environ, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])  # type: ignore[no-any-return]


def agreement(work: Path) -> dict[str, Any]:
    """How far the logits of both sides are apart, and whether a prediction changed."""
    one, other = (load_file(work / f"{name}.safetensors")["logits"] for name in ("plain", "kept"))
    count = min(len(one), len(other))
    one, other = one[:count], other[:count]
    best = one.topk(2, dim=2).values
    changed = one.argmax(2) != other.argmax(2)
    margin = best[..., 0] - best[..., 1]
    return {
        "episodes": count,
        "largest_logit": one.abs().max().item(),
        "largest_difference": (one - other).abs().max().item(),
        "predictions": changed.numel(),
        "changed": int(changed.sum()),
        "changed_with_a_margin_above_1e-5": int((changed & (margin > NEAR)).sum()),
    }


def compared(case: str, shots: int, options: Options) -> dict[str, Any]:
    """Both sides of one case, one after the other."""
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
        if options.pieces:
            result["vit_b_16_from_pieces"] = in_a_process(replace(options, part="pieces"))
    print(f"{case}, {shots}-shot: {ratios['cpu_seconds']['median']}x of at most {result['limit']}x", flush=True)
    return result


def moving_shapes(folder: Path, options: Options) -> dict[str, Any]:
    """The whole command, from the start of its process: 10,000 episodes of each kind of task, 720 videos."""
    data, run = folder / "moving_shapes", folder / "run"
    recipe = [sys.executable, "-m", "dmgal.recipes.train", "method/dmgal_adapter", "data/moving_shapes"]
    recipe += ["--data.root", str(data), "--train.steps", "1", "--train.validation-episodes", "10", "--quiet"]
    if not (run / "adapter").exists():
        subprocess.run([*recipe, "--out", str(run)], check=True)
    with tempfile.TemporaryDirectory() as cache:
        words = [sys.executable, "-m", "dmgal.recipes.evaluate", str(run), "--episodes", str(options.episodes)]
        start = time.perf_counter()
        subprocess.run([*words, "--cache", cache, "--quiet"], check=True)
        return {"episodes_of_each_kind": options.episodes, "wall_seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Measure and write; or one part, for the process that asked."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    if options.part != "all":
        print(json.dumps({"plain": plain, "kept": kept, "pieces": pieces}[options.part](options)))
        return
    numbers = {
        name: getattr(options, name) for name in ("episodes", "videos", "plain_episodes", "rounds", "threads", "seed")
    }
    results = [compared(case, shots, options) for case, shots in WANTED]
    report: dict[str, Any] = {**hardware(), **numbers, "frames": FRAMES, "tiny_clip": results}
    if options.moving_shapes is not None:
        report["moving_shapes"] = moving_shapes(options.moving_shapes, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
