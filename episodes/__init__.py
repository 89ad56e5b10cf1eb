"""Few-shot tasks: videos, frames, episodes, and the matching of queries with the support."""

from .episode import Episode, EpisodeOutput, TaskTargets
from .recognizer import FewShotRecognizer
from .sampler import EpisodeIndices, EpisodeSampler, ReversalSampler

__all__ = [
    "Episode",
    "EpisodeIndices",
    "EpisodeOutput",
    "EpisodeSampler",
    "FewShotRecognizer",
    "ReversalSampler",
    "TaskTargets",
]
