"""An environment proves itself: ``vla-ft selftest [--environment NAME] [--attention A,B] [--json]``.

Runs inside an environment. Without a card it shows that the environment holds what its label says and code for its
cards; with one it also computes on it. Exit code 1 when a check fails.
"""

from __future__ import annotations

from vla_ft.environment.selftest.report import main, run

__all__ = ["main", "run"]
