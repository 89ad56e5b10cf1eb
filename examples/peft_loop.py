"""Idea: a training loop of your own. PEFT puts adapters into a backbone, and Accelerate spreads tasks over processes.

    accelerate launch examples/peft_loop.py
    torchrun --nproc_per_node 2 examples/peft_loop.py

Prints the loss and accuracy of the tasks, averaged over every tenth of the training, and saves the adapter in PEFT's
format. ``peft.PeftModel.from_pretrained(backbone, "runs/peft_loop")`` loads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import peft
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from dmgal.adapters import SmgaConfig
from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.episodes import EpisodeSampler, FewShotRecognizer
from dmgal.episodes.episode_dataset import EpisodeDataset
from dmgal.episodes.heads import BiMHM
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource
from dmgal.videos.decoding.clip import FrameSampler, TestTransform
from dmgal.videos.moving_shapes.generate import generate_moving_shapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/peft_loop"))
    parser.add_argument("--data", type=Path, default=Path("data/moving_shapes"))
    parser.add_argument("--clips", type=int, default=30, help="videos per class")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    set_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # torchrun does not ask for it
    rank, world = accelerator.process_index, accelerator.num_processes

    backbone = peft.get_peft_model(load_backbone("tiny-clip"), SmgaConfig())
    head = BiMHM(center="video", logit_scale=10.0, eps=0.0)
    recognizer = FewShotRecognizer(FrameEncoder(backbone), head)

    split_file = generate_moving_shapes(options.data, clips_per_class=options.clips)
    catalog = VideoCatalog.from_csv(split_file, options.data).split("train")
    sampler = EpisodeSampler(catalog.labels, n_way=5, k_shot=1, n_query=2, num_episodes=options.steps * world, seed=0)
    frames = FrameSampler(8, TestTransform(recognizer.encoder.image_size))
    tasks = EpisodeDataset(ClipSource(catalog, cache_bytes=2**30), sampler, frames)
    mine = DataLoader(Subset(tasks, range(rank, len(tasks), world)), batch_size=None)

    trained = [parameter for parameter in recognizer.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(recognizer, torch.optim.AdamW(trained, lr=4e-3))
    model.train()
    results = []
    for step, task in enumerate(mine, start=1):
        task = task.to(accelerator.device)
        logits = model(task).logits
        loss = cross_entropy(logits, task.query_labels)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        correct = (logits.argmax(1) == task.query_labels).float().mean()
        results.append(accelerator.reduce(torch.stack([loss.detach(), correct]), "mean"))
        if step % max(1, options.steps // 10) == 0:
            mean_loss, accuracy = torch.stack(results).mean(0).tolist()
            accelerator.print(f"step {step}: loss {mean_loss:.3f}, accuracy {accuracy:.1%}")
            results.clear()
    if accelerator.is_main_process:
        backbone.save_pretrained(str(options.out))
    accelerator.print(f"adapter: {options.out}")
    model, optimizer = accelerator.free_memory(model, optimizer)
    accelerator.end_training()


if __name__ == "__main__":
    main()
