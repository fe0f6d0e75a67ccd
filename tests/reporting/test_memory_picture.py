"""The picture of a forecast."""

from __future__ import annotations

from PIL import Image

from vla_ft.reporting.memory import MOST, draw_memory


def test_a_bar_for_each_row_and_no_more_than_can_be_read(tmp_path):
    rows = [
        (f"engine=fsdp2 batch.per_device={n}", {"weights": 2.0, "margin": 1.0}, n % 2 == 0) for n in range(MOST + 9)
    ]
    few = Image.open(draw_memory(rows[:3], 24.0, "few", tmp_path / "few.png"))
    many = Image.open(draw_memory(rows, 24.0, "many", tmp_path / "many.png"))
    assert few.width == many.width and few.height < many.height
    most = Image.open(draw_memory(rows[:MOST], 24.0, "many", tmp_path / "most.png"))
    assert most.size == many.size
