"""CogACT's launch lines as its documents type them, run by vla_ft: see docs/cogact.md.

torchrun --standalone --nproc-per-node=4 scripts/train.py --vla.type custom-finetune ...
python scripts/train.py --vla.type custom-finetune ...          # starts one process per card by itself
"""

from __future__ import annotations

import os
import shlex
import sys

from vla_ft.cli import main
from vla_ft.errors import UserError
from vla_ft.policies.cogact.published_flags import flag_lines
from vla_ft.policies.cogact.translate import launched_processes, translate


def run(arguments: list[str]) -> int:
    """Translate and train; a mistake is told in a sentence."""
    if {"-h", "--help"} & {*arguments}:
        print("\n".join([(__doc__ or "").strip(), "", "Flags, and what they are here:", *flag_lines()]))
        return 0
    try:
        found = translate(arguments, launched_processes(os.environ))
    except UserError as mistake:
        print(f"train.py: {mistake}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print("\n".join([*found.notes, shlex.join(["vla-ft", "train", *found.words])]), flush=True)
    return main(["train", *found.words])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
