#!/usr/bin/env python3
"""Train ACT with the guide's commands: ``python scripts/train_act.py --dataset_dir ...``, in the project's folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `policy` and `train` are found whatever folder this is called from
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `vla-ft` does, before torch is imported

from vla_ft.errors import UserError  # noqa: E402
from vla_ft.training.launch import follow_launcher  # noqa: E402

if TYPE_CHECKING:
    from policy.act.translator import Flags

_WANDB_MODES = {"offline": "offline", "dryrun": "offline", "disabled": "off"}
"""What W&B's own variable ``WANDB_MODE`` asks for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and return the exit code: 0 done, 2 a mistake that can be mended, 75 stopped after a checkpoint."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    follow_launcher()
    options, rest = _parser().parse_known_args(words)
    from policy.act.advice import typable
    from vla_ft.cli import guarded

    return guarded(lambda: typable(lambda: _train(options, overrides(rest), words)))


def _train(options: argparse.Namespace, changes: Sequence[str], words: Sequence[str]) -> int:
    from policy.act.translator import read_guide_config, translate
    from train.act_trainer import GuideConsole
    from train.statistics_check import refuse_other_statistics
    from vla_ft.cli import train_configured

    config = read_guide_config(Path(options.config), changes)
    translation = translate(config, read_flags(options))
    if "VLA_FT_LAUNCHER" not in os.environ and os.environ.get("RANK", "0") == "0":  # once, whoever starts the others
        refuse_other_statistics(translation.run, options.action_mean, options.action_std)
    dataset = translation.run.data.path
    shown = {"Config": options.config, "Dataset": dataset, "Output": translation.run.output}
    watcher = GuideConsole(config, translation, shown)
    started_here = "RANK" in os.environ or translation.processes == 1
    if started_here and int(os.environ.get("RANK", "0")) == 0:
        watcher.opened()
    return train_configured(translation.run, [str(Path(__file__).resolve()), *words], [watcher], watcher.quiet)


def read_flags(options: argparse.Namespace) -> Flags:
    """What the command line says beside the configuration, as the translator takes it. Raises UserError."""
    from policy.act.translator import Flags
    from policy.act.weights import find_state

    given = None if options.resume_from is None else Path(options.resume_from)
    if options.weights_only and given is None:
        raise UserError("--weights_only says how --resume_from is used, and that was not given.")
    alone = options.weights_only
    return Flags(
        output_dir=options.output_dir or _default_output(),
        device=_device(options.device),
        dataset_dir=options.dataset_dir,
        **_wandb(options),
        scale_lr=options.scale_lr,
        resume="never" if alone else "auto" if given is None else str(find_state(given)),
        weights=str(given) if alone else None,
    )


def overrides(words: Sequence[str]) -> list[str]:
    """``--lr=1e-4``, ``--encoder.freeze false`` and ``lr=1e-4`` as ``key=value``. Raises UserError otherwise."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        key = word.removeprefix("--")
        if "=" not in word and word.startswith("--"):
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f"{word} needs a value: {word}=VALUE.")
            key = f"{key}={value}"
        elif "=" not in word:
            raise UserError(f"Cannot read '{word}': expected a flag, or key=value such as --lr=5e-6. See --help.")
        found.append(key)
    return found


def _device(text: str) -> str:
    if text in ("auto", "cpu", "cuda"):
        return text
    number = text.removeprefix("cuda:")
    hint = f" For a certain card: CUDA_VISIBLE_DEVICES={number} with --device cuda." if number.isdigit() else ""
    raise UserError(f"--device is '{text}', expected cuda, cpu or auto.{hint}")


def _default_output() -> str:
    """A folder of its own for every trial of a sweep, so that none continues another's run."""
    sweep, trial = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    return f"runs/sweep-{sweep}/{trial}" if sweep and trial else "runs/act"


def _wandb(options: argparse.Namespace) -> dict[str, object]:
    tags = tuple(tag.strip() for words in options.wandb_tags or () for tag in words.split(",") if tag.strip())
    override = next((tag for tag in tags if "=" in tag), None)
    if override is not None:
        raise UserError(f"--wandb_tags takes every word up to the next flag, '{override}' too. Write --{override}.")
    wanted = options.wandb_project is not None or "WANDB_SWEEP_ID" in os.environ
    if not wanted and (options.wandb_name or tags):
        raise UserError("--wandb_name and --wandb_tags are of a W&B run: give --wandb_project as well.")
    mode = _WANDB_MODES.get(os.environ.get("WANDB_MODE", ""), "online")
    return {
        "wandb": mode if wanted else "off",
        "wandb_project": options.wandb_project,
        "wandb_name": options.wandb_name,
        "wandb_tags": tags,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Train ACT. Any key of the configuration can be given as --key=value, such as --lr=5e-6 or "
        "--encoder.freeze=false.",
    )
    add = parser.add_argument
    add("--config", "--config_path", default="configs/policy_act.yaml", help="configuration, in the guide's words")
    add("--dataset_dir", help="the demonstrations: npy, ALOHA HDF5, LeRobot, RLDS or npz")
    add("--output_dir", help="the run folder; default runs/act, in a W&B sweep one for every trial")
    add("--device", default="cuda", help="cuda (default), cpu or auto; cuda never becomes the CPU unasked")
    add("--wandb_project", help="log to Weights & Biases; WANDB_MODE=offline writes to the run folder alone")
    add("--wandb_name", help="name of the W&B run; default: that of the run folder")
    add("--wandb_tags", nargs="+", metavar="TAG", help="tags, with commas or with blanks")
    add("--resume_from", metavar="FILE", help="continue at an act-train-N.pth, exactly; without it, at the newest")
    add("--weights_only", action="store_true", help="a new run from the weights of --resume_from, nothing else of it")
    add("--scale_lr", action="store_true", help="multiply lr by the number of processes (Goyal et al., 2017)")
    add("--action_mean", metavar="FILE", help="a .npy file, compared with the mean of the training episodes")
    add("--action_std", metavar="FILE", help="the same for the standard deviation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
