"""Few-shot tasks: videos, frames, episodes, and the matching of queries with the support."""

from .catalog import VideoCatalog
from .episode import Episode, EpisodeOutput, TaskTargets
from .evaluation import Estimate, Evaluation, encode_videos, evaluate, paired_difference
from .recognizer import FewShotRecognizer
from .sampler import EpisodeIndices, EpisodeSampler, ReversalSampler

__all__ = [
    "Episode",
    "EpisodeIndices",
    "EpisodeOutput",
    "EpisodeSampler",
    "Estimate",
    "Evaluation",
    "FewShotRecognizer",
    "ReversalSampler",
    "TaskTargets",
    "VideoCatalog",
    "encode_videos",
    "evaluate",
    "paired_difference",
]
