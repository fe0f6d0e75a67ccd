"""Pictures of a dataset: they hold what was given, at its place."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vla_ft.reporting.dataset_pictures import draw_contact_sheet, draw_tracks


def test_every_frame_stands_in_the_sheet(tmp_path):
    frames = np.zeros((4, 30, 40, 3), np.uint8)
    frames[range(4), ..., 0] = np.array([60, 110, 160, 210])[:, None, None]
    small = np.zeros((2, 30, 60, 3), np.uint8)
    small[..., 2] = 250
    strips = [("episode 0\ntop", frames, np.arange(4) / 2), ("episode 1\ntop", small, np.arange(2) / 2)]
    picture = np.asarray(Image.open(draw_contact_sheet(tmp_path / "sheet.png", "a set", strips)).convert("RGB"))
    pure = [(picture == colour).all(-1) for colour in ([60, 0, 0], [110, 0, 0], [160, 0, 0], [210, 0, 0], [0, 0, 250])]
    assert all(mask.sum() > 2000 for mask in pure)
    columns = [np.median(np.nonzero(mask)[1]) for mask in pure[:4]]
    assert columns == sorted(columns), "time runs to the right"
    assert np.nonzero(pure[4])[0].min() > np.nonzero(pure[0])[0].max(), "a strip a row"


def test_tracks_show_every_dimension_and_the_usual_range(tmp_path):
    seconds = np.linspace(0, 2, 50)
    values = np.stack([np.sin(seconds + d) for d in range(5)], axis=1)
    names, units = tuple("abcde"), ("rad",) * 5
    plain = draw_tracks(tmp_path / "a.png", "a set", names, units, [("episode 0", seconds, values)])
    bounds = (values.min(axis=0), values.max(axis=0))
    banded = draw_tracks(tmp_path / "b.png", "a set", names, units, [("episode 0", seconds, values)], bounds)
    one, other = (np.asarray(Image.open(p).convert("L")).astype(int) for p in (plain, banded))
    assert one.shape == other.shape and (one != other).mean() > 0.1
    columns = np.flatnonzero((one != other).any(axis=0))
    assert (np.diff(columns) > 20).sum() == 3, "a band in each of four cells beside each other, nothing between them"
