"""The table of docs/pizero_keys.md. Written by ``python -m vla_ft.policies.pizero.key_table > docs/pizero_keys.md``."""

from __future__ import annotations

from vla_ft.policies.pizero.vocabulary import KEYS, Key, Setting, meaning

_HEAD = """# Keys of open-pi-zero's training files

What `vla-ft recipe from-open-pi-zero FILE.yaml key=value` makes of each (`vla_ft/policies/pizero/vocabulary.py`, from
which this page is written). A key that is left out has the published Bridge file's value; one that is not here is
refused, and so is a value that has no counterpart. `null` is off where the table says so. hydra's own keys
(`hydra.*`) change nothing; `${eval:...}`, `${now:...}` and `${oc.env:...}` are understood.

Nothing is assumed for `time_max_period` and `action_expert_rope_theta`, which no tensor shows: a file has to say
both, or the one base of older files, `joint.config.rope_theta`, whose code had a period of 10000.

Held-out data: open-pi-zero evaluates Bridge on the dataset's own `val` split, and Fractal on the last 5 % of `train`.
Here a share of the training episodes is held out instead, drawn by their numbers: what `data.train.split` leaves, or
0.05.

| key | left out | here |
|---|---|---|
"""


def key_table() -> str:
    """The page."""
    rows = [f"| `{name}` | {_left_out(key)} | {meaning(key)} |" for name, key in KEYS.items()]
    return _HEAD + "\n".join(rows) + "\n"


def _left_out(key: Key) -> str:
    if not isinstance(key, Setting) or key.default is None:
        return "null" if isinstance(key, Setting) and key.null else ""
    return f"`{key.default}`"


if __name__ == "__main__":
    print(key_table(), end="")
