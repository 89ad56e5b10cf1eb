"""Few-shot tasks: episodes, samplers that draw them, and the recognizer that answers them."""

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
