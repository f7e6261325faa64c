"""The report: self-contained, themed, honest about what is missing."""

import re
from xml.etree import ElementTree

import pytest

from rayrank.pipeline import charts
from rayrank.pipeline.cost import Cost
from rayrank.pipeline.probe import Probe
from rayrank.pipeline.report import CurveData, GateLine, Report, SpotData, cell, render
from rayrank.pipeline.surroundings import Surroundings

FULL = Report(
    title="Run <1>",
    subtitle="made · test",
    verdict="Better & calibrated.",
    facts={"teacher AUC": "0.82"},
    columns=("model", "protocol", "AUC", "LogLoss", "parameters", "candidates/s"),
    rows=(
        {
            "model": "item mean",
            "protocol": "both",
            "AUC": 0.7,
            "LogLoss": 0.6,
            "parameters": 10.0,
            "candidates/s": None,
        },
        {"model": "teacher", "protocol": "both", "AUC": 0.8, "LogLoss": 0.5, "parameters": 2e7, "candidates/s": 4e3},
    ),
    losses={"teacher": {"like": tuple((float(i), 1 / i) for i in range(1, 60)), "rating": ((1.0, 0.5), (2.0, 0.4))}},
    calibration={"teacher": CurveData(prediction=(0.1, 0.9), label=(0.2, 0.8), count=(5.0, 5.0))},
    spots=(SpotData(name="teacher", candidates_per_s=4e3, auc=0.8, low=0.79, high=0.81),),
    floors={"item mean": 0.7, "popularity": 0.7},
    latency_ms={"recommend": (1.0, 2.0, 30.0), "rank": ()},
    steps_s={"prepare": 2.0, "train_teacher": 9.0},
    gates=(GateLine(name="latency", value="60 ms", threshold="≤ 50 ms", passed=False, explanation="Too slow."),),
    notes=("made by a test",),
)


def svgs(page):
    return re.findall(r"<svg.*?</svg>", page, re.DOTALL)


def test_the_page_needs_nothing_from_outside_and_escapes_text():
    page = render(FULL)
    assert "Run &lt;1&gt;" in page
    assert "Better &amp; calibrated." in page
    for pattern in (r"<script", r"<link", r"<img", r"@import", r"url\((?!#)", r'src="', r'href="(?!#)'):
        assert not re.search(pattern, page), pattern
    assert "prefers-color-scheme: dark" in page


def test_every_plot_is_there_and_follows_the_theme():
    plots = svgs(render(FULL))
    labels = [re.search(r'aria-label="([^"]+)"', plot).group(1) for plot in plots]
    assert labels == [
        "AUC over candidates per second",
        "mean label over mean prediction",
        "distribution of response times",
        "training loss by task over steps",
        "seconds of each step",
    ]
    for plot in plots:
        assert "#00fe" not in plot
        assert "var(--ink)" in plot or "var(--muted)" in plot
        assert "var(--font)" in plot
        ElementTree.fromstring(plot.replace("xlink:href", "href"))


def test_the_best_of_a_column_is_marked_by_its_direction():
    page = render(FULL)
    best = re.findall(r'<td class="n best">([^<]+)</td>', page)
    assert best == ["0.8000", "0.5000"]
    assert '<td class="no">failed</td>' in page


def test_parts_without_data_are_left_out():
    page = render(Report(title="Empty"))
    assert svgs(page) == []
    assert "Results" not in page
    assert "Promotion gates" not in page


def test_equal_input_gives_an_equal_page():
    assert render(FULL) == render(FULL.model_copy(deep=True))


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("AUC", 0.81234, "0.8123"),
        ("AUC", None, "–"),
        ("AUC", float("nan"), "–"),
        ("parameters", 23_312_000.0, "23.3M"),
        ("candidates/s", 812.4, "812"),
        ("model", "teacher", "teacher"),
    ],
)
def test_cells(column, value, shown):
    assert cell(column, value) == shown


def test_plot_table_and_gate_show_the_same_percentiles():
    times = (1.0, 2.0, 3.0, 4.0, 30.0)
    probe, cost = Probe({"rank": times}, {}, {}), Cost(500, tuple(t / 1000 for t in times))
    assert probe.percentile("rank", 0.5) == 3.0
    assert probe.percentile("rank", 0.95) == pytest.approx(24.8)  # by hand: 4 + 0.8 · (30 - 4)
    assert cost.quantile_ms(0.95) == pytest.approx(24.8)
    (axis,) = charts.latency({"rank": times}, charts.LIGHT).axes
    assert [text.get_text() for text in axis.texts] == ["p50 3.0", "p95 24.8"]
    assert len({text.xyann[1] for text in axis.texts}) == 2, "labels of near percentiles lie on each other"


def test_notes_say_where_it_was_made_and_how_to_read_losses():
    page = render(FULL.model_copy(update={"losses_note": "not their height", "notes": (Surroundings.now().line(),)}))
    assert '<p class="note">not their height</p>' in page
    assert re.search(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00; .+, \d+ cores, load [\d.]+", page)


def test_png_for_trackers_and_charts_of_nothing():
    figure = charts.quality_cost([], {}, charts.LIGHT)
    assert charts.to_png(figure)[:4] == b"\x89PNG"
    assert charts.to_svg(charts.calibration({}, charts.MARKERS), "empty").startswith("<svg")
