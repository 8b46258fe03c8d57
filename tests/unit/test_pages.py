"""What the charts and the words of the pages are made of."""

from __future__ import annotations

import pytest

from hipscore.api import models
from hipscore.api.pages import chart, words


def test_edema_and_what_synovitis_adds_are_one_bar() -> None:
    item = {
        "sop_instance_uid": "1.2",
        "instance_number": 1,
        "group": "central",
        "ratio": 0.8,
        "bme_ratio": 0.5,
        "synovitis_ratio": 0.4,  # a part is both, and counts once
    }
    hip = {"side": "right", "slices": [item], "slices_used": 1, "unet_score": 0.8}
    drawn = chart.ratios([hip], [])
    assert drawn is not None
    (row,) = drawn.rows
    edema, synovitis = row.bars[0].parts
    assert (edema.kind, synovitis.kind) == ("bme", "synovitis")
    assert edema.height / synovitis.height == pytest.approx(0.5 / 0.3)
    assert synovitis.y + synovitis.height == pytest.approx(edema.y)
    del item["bme_ratio"]
    plain = chart.ratios([hip], [])
    assert plain is not None
    (whole,) = plain.rows[0].bars[0].parts
    assert whole.height == pytest.approx(edema.height + synovitis.height)


@pytest.mark.parametrize("score", (0.3, 1.9, 7.2, 14.3, 52.75, 130.0))
def test_the_ticks_of_the_trend_are_round(score: float) -> None:
    point = models.TrendPoint(
        study_instance_uid="1.2",
        study_date="20260301",
        accession_number="",
        unet_score=score,
        hips={},
        model="m 1",
        source="database",
        comparable=True,
        remarks=[],
    )
    drawn = chart.trend([point], "1.2")
    assert drawn is not None
    ticks = [float(text) for _, text in drawn.ticks]
    step = ticks[1]
    assert ticks == pytest.approx([0, step, 2 * step, 3 * step, 4 * step])
    assert float(f"{step:e}".split("e")[0]) in {1, 2, 2.5, 5}
    assert ticks[-1] >= score


@pytest.mark.parametrize(
    ("sent", "word"),
    (
        ("committed", "kept everywhere"),
        ("arrived", "kept everywhere"),
        ("unconfirmed", "sent, not yet confirmed"),
        ("waiting", "waiting"),
        ("needs_you", "needs you"),
    ),
)
def test_words_for_where_results_are(sent: models.Sent, word: str) -> None:
    assert words.sent(models.Sent(sent)) == word


def test_a_rule_that_is_none_is_told_in_words() -> None:
    assert words.rule("explained").startswith("no rule matched; analysed so that")
    assert words.rule("hips-of-ours") == "hips-of-ours"
