"""``python -m vla_ft.environment.selftest``."""

from __future__ import annotations

from vla_ft.environment.selftest.report import main

raise SystemExit(main())
