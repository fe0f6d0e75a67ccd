from __future__ import annotations

import json

from PIL import Image

from vla_ft.reporting.curves import draw_loss


def test_the_picture_shows_both_curves(tmp_path):
    lines = [{"step": s, "train/loss": 1 / s, "validation/loss": 2 / s} for s in range(1, 20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Image.open(draw_loss(tmp_path)) as picture:
        assert picture.width > 600
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours, "matplotlib's first two line colours"


def test_no_loss_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "other": 1.0}) + "\n")
    assert draw_loss(tmp_path) is None
