"""ACT as the guide's snippets use it: a network that takes observations, and a loader that gives them."""

from policy.act.loader import create_temporal_dataloader
from policy.act.network import GuidePolicy, build_act_policy

__all__ = ["GuidePolicy", "build_act_policy", "create_temporal_dataloader"]
