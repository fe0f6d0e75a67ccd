"""``python -m vla_ft``."""

from vla_ft.cli import main
from vla_ft.training.launch import leave

leave(main())
