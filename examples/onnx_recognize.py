"""Recognition of a clip with an exported run and a gallery, by onnxruntime, PyAV and numpy alone.

    dmgal enroll runs/mine FOLDER --out gallery.safetensors
    dmgal export runs/mine --out exported
    python examples/onnx_recognize.py exported gallery.safetensors CLIP

For runs without a Cmga whose head is BiMHM, such as those of method/smga and method/bi_mhm.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime


def frames_of(path, count):
    """Decode a video and return evenly spaced frames (T, H, W, 3)."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[(2 * place + 1) * len(frames) // (2 * count)] for place in range(count)])


def weights(size, wanted):
    """Return the matrix (wanted, size) of bilinear resizing with antialiasing."""
    scale = size / wanted
    width = max(scale, 1.0)
    centers = (np.arange(wanted) + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centers[:, None]) / width
    triangle = np.clip(1 - distances, 0, None)
    return triangle / triangle.sum(1, keepdims=True)


def fitted(frames, size, resize):
    """Resize frames until the image size, times a factor, just fits, and crop the center: uint8 (T, 3, h, w)."""
    least = [round(side * resize) for side in size]
    scale = max(side / own for side, own in zip(least, frames.shape[1:3], strict=True))
    height, width = (max(a, round(b * scale)) for a, b in zip(least, frames.shape[1:3], strict=True))
    frames = np.einsum("thwc,xw->thxc", frames, weights(frames.shape[2], width)).round()
    frames = np.einsum("thxc,yh->tyxc", frames, weights(frames.shape[1], height)).round().clip(0, 255)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return frames[:, top : top + size[0], left : left + size[1]].astype(np.uint8).transpose(0, 3, 1, 2)


def read_safetensors(path):
    """Return the tensors and the metadata of a safetensors file."""
    content = Path(path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    types = {"F32": np.float32, "I64": np.int64, "U8": np.uint8, "F16": np.float16}
    metadata = header.pop("__metadata__")
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }, metadata


def similarities(query, support, eps):
    """Return the negative Bi-MHM distance, averaged over frames, of a query (T, D) to support videos (S, T, D)."""
    norms = np.linalg.norm(query, axis=-1)[:, None] * np.linalg.norm(support, axis=-1)[:, None, :] + eps
    cosines = np.einsum("td,sud->stu", query, support) / np.where(norms == 0, 1, norms)
    return -((1 - cosines).min(2).sum(1) + (1 - cosines).min(1).sum(1)) / (len(query) + support.shape[1])


def main(folder, gallery, clip):
    """Print the classes of a gallery for a clip, best first, with their logits."""
    model = json.loads((Path(folder) / "model.json").read_text())
    head = {"shots": "distances", "eps": 0.01, "center": "none", **model["head"]}
    if head["name"] != "BiMHM" or head["center"] == "both" or head["shots"] != "distances" or model["task_layer"]:
        sys.exit("This example compares videos as BiMHM does, without a Cmga.")
    session = onnxruntime.InferenceSession(Path(folder) / "encode.onnx")
    frames = fitted(frames_of(clip, model["frames"]), model["image_size"], model["resize"])
    (query,) = (state[0] for state in session.run(None, {session.get_inputs()[0].name: frames[None]}))
    tensors, metadata = read_safetensors(gallery)
    scores = similarities(query, tensors["state.frames"], head["eps"])
    scores = scores * model["logit_scale"] if model["logit_scale"] else scores * (2 * model["frames"])
    names = json.loads(metadata["gallery"])["class_names"]
    logits = {name: scores[tensors["labels"] == label].mean() for label, name in enumerate(names)}
    for name, logit in sorted(logits.items(), key=lambda entry: -entry[1]):
        print(f"{name:30s} {logit:8.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
