# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Image-quality rewards behind one protocol: for distillation, for choosing among results, for cache refresh.

[`QualityScorer`] ships with the package; [`PyIQAReward`] needs the `rewards` extra and weights that it downloads.
"""

from .loading import load_reward
from .pyiqa_reward import PyIQAReward
from .quality_scorer import QualityScorer, packaged_quality_scorer
from .reward import HybridReward, Reward, check_frames

__all__ = [
    "HybridReward",
    "PyIQAReward",
    "QualityScorer",
    "Reward",
    "check_frames",
    "load_reward",
    "packaged_quality_scorer",
]
