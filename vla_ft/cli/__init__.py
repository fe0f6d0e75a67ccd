"""``vla-ft COMMAND recipe=NAME key=value ...``: the only place where planning, training and reporting meet.

Each command imports what it needs when it runs: the help takes no torch.
"""

from vla_ft.cli.data import DATA_VERBS
from vla_ft.cli.entry import COMMANDS, main
from vla_ft.cli.mistakes import guarded, say_mistake
from vla_ft.cli.recipes import RECIPE_VERBS
from vla_ft.cli.training import train_configured

__all__ = ["COMMANDS", "DATA_VERBS", "RECIPE_VERBS", "guarded", "main", "say_mistake", "train_configured"]
