"""Idea: features for your own methods. Encode a folder of clips once, in any number of processes, into one file.

    accelerate launch examples/features.py --folder FOLDER --out features.safetensors
    torchrun --nproc_per_node 2 examples/features.py --folder FOLDER --out features.safetensors

The folder has one subfolder of clips per class. The features are those of a frozen backbone with a motion adapter that
was trained on generated motion. Prints the shape and the classes. The file holds ``features`` ``(V, T, D)``, ``labels``
``(V,)`` and, as metadata, the names of classes and videos.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Subset

from dmgal.adapters import load_adapter, pretrained
from dmgal.backbones import FrameEncoder, load_backbone
from dmgal.videos import VideoCatalog
from dmgal.videos.dataset import ClipSource, VideoDataset
from dmgal.videos.decoding.clip import FrameSampler, TestTransform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("features.safetensors"))
    parser.add_argument("--frames", type=int, default=8, help="frames per clip")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode, for each process that encodes")
    options = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # torchrun does not ask for it

    backbone = load_adapter(load_backbone("tiny-clip"), pretrained("tiny-clip-motion"))
    encoder = FrameEncoder(backbone).to(accelerator.device).eval()
    catalog = VideoCatalog.from_folders(options.folder)
    clips = VideoDataset(ClipSource(catalog), FrameSampler(options.frames, TestTransform(encoder.image_size)))
    mine = list(range(accelerator.process_index, len(clips), accelerator.num_processes))
    loader = DataLoader(Subset(clips, mine), batch_size=16, num_workers=options.workers)
    with torch.no_grad():
        parts = [encoder.encode(batch.to(accelerator.device))["features"].cpu() for batch in loader]

    encoded = [
        pair for indices, part in gather_object([(mine, torch.cat(parts))]) for pair in zip(indices, part, strict=True)
    ]
    if accelerator.is_main_process:
        features = torch.stack([feature for _, feature in sorted(encoded, key=lambda pair: pair[0])])
        names = {"class_names": json.dumps(catalog.class_names), "videos": json.dumps(catalog.videos)}
        save_file({"features": features, "labels": torch.from_numpy(catalog.labels)}, options.out, names)
        print(f"features {tuple(features.shape)} of {len(catalog.class_names)} classes: {options.out}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
