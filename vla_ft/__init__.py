"""Fine-tune CogACT, pi0, RDT and ACT in environments made and proved per GPU generation.

Importing this package takes no torch: the host tools (``vla_ft.environment``, ``vla_ft.host``) run without it.
"""

__version__ = "0.1.0"
