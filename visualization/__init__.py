"""Pictures of a model: similarity of motion, attention over frames, motion over time, and galleries.

    from dmgal.visualization import motion_maps, record, save_picture

    recording = record(recognizer, videos)  # uint8 (V, T, 3, H, W)
    save_picture(motion_maps(recording), "maps.png")

`record` runs a recognizer once and returns what one of its layers sees. The functions of ``maps`` compute maps from a
recording, and those of ``figures`` and ``plots`` draw them as Matplotlib figures.
"""

from .figures import attention_overlay, motion_maps, pair_maps, task_attention
from .layers import find_layers
from .maps import Recording, record
from .pictures import save_film, save_picture
from .plots import gallery_plot, motion_over_time

__all__ = [
    "Recording",
    "attention_overlay",
    "find_layers",
    "gallery_plot",
    "motion_maps",
    "motion_over_time",
    "pair_maps",
    "record",
    "save_film",
    "save_picture",
    "task_attention",
]
