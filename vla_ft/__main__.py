"""``python -m vla_ft``."""

from vla_ft.cli import main

raise SystemExit(main())
