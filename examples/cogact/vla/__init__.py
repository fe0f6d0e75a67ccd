"""What CogACT's documents import as ``vla``: run their snippets from this folder, unchanged."""

from vla_ft.policies.cogact.inference import CogActVla as CogACT
from vla_ft.policies.cogact.inference import load_vla

__all__ = ["CogACT", "load_vla"]
