"""Evaluation on several processes, bit-identical to one process."""

from __future__ import annotations

import json

import forked
import pytest

from dmgal.cli import main
from dmgal.recipes.training import trainer as loop

SCRIPT = """
import json, os, socket, sys
import torch
import dmgal.backbones
import dmgal.episodes.evaluation.accuracy as evaluation
import dmgal.recipes.run.distributed as sharding
from accelerate import PartialState
from dmgal.episodes import EpisodeSampler
from dmgal.recipes.run.build import build_recognizer
from dmgal.recipes.run.config import Recipe

sharding.CHUNK = 3
sharding.LOOK_EVERY = evaluation.LOOK_EVERY = 8

class Clips(torch.utils.data.Dataset):
    def __len__(self):
        return 14

    def __getitem__(self, video):
        return torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(video))

def answer(ways):
    torch.manual_seed(0)
    recognizer = build_recognizer(Recipe(adapter={"peft_type": "DMGAL", "num_frames": 4})).eval()
    for parameter in recognizer.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    states = sharding.encode_shared(recognizer, Clips(), progress=False)
    sampler = EpisodeSampler([video % 2 for video in range(14)], ways, 1, 2, 30, 0)
    found = sharding.evaluate_shared(recognizer, states, sampler, progress=False, data="clips")
    answers = {name: [len(column), hash(str(column.tolist()))] for name, column in vars(found.answers).items()}
    bad = torch.zeros(6, dtype=torch.bool)
    bad[PartialState().process_index] = True
    norm = torch.nn.BatchNorm1d(2)
    norm(torch.full((4, 2), float(PartialState().process_index)))
    sharding.alike_everywhere(norm)
    hashes = {name: hash(tensor.numpy().tobytes()) for name, tensor in states.tensors().items()}
    of_all = sharding.any_process(bad).tolist(), norm.running_mean.tolist()
    return [hashes, [found.accuracies.tolist(), found.episodes, answers], *of_all]

for world in (1, 2, 6):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            told = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, MASTER_PORT=port)
            if world > 1:
                os.environ.update({key: str(value) for key, value in told.items()}, MASTER_ADDR="127.0.0.1")
            PartialState(cpu=True)
            sys.stdout.write(json.dumps([world, *answer(2)]) + "\\n")  # one write, so lines do not mix
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def answers():
    result = forked.run(["-c", SCRIPT], PYTHONHASHSEED="0")
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_process_gets_the_result_of_one(answers):
    """Includes more processes than chunks of videos or groups of tasks."""
    assert [world for world, *_ in answers] == [1, *[2] * 2, *[6] * 6]
    _, states, evaluation, *_ = answers[0]
    accuracies, _, columns = evaluation
    assert len(states) >= 1 and len(accuracies) == 30 and len(set(accuracies)) > 1
    assert columns["video"][0] == 120 and columns["offered"][0] == 30
    for _, other, found, *_ in answers[1:]:
        assert other == states and found == evaluation


def test_flag_of_one_process_is_shared(answers):
    for world, _, _, flags, _ in answers:
        assert flags == [place < world for place in range(6)]


def test_validation_uses_buffers_of_first_process(answers, tmp_path, data_flags, monkeypatch):
    assert {tuple(mean) for *_, mean in answers} == {(0.0, 0.0)}  # the other processes had different buffers
    validated = []
    monkeypatch.setattr(loop, "alike_everywhere", lambda model: validated.append(model.training))
    words = ["method/smga", *data_flags, "--train.steps", "2", "--train.validate-every", "1"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    assert len(validated) == 2
