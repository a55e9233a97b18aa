"""The report: whole, valid, and without anything that it did not escape."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from orch.tuning import choice, plot
from orch.tuning.grid import Cell, Outcome, Row
from orch.tuning.report import NARROW, WIDE, Report, render

FACTS: dict[str, Any] = {
    "target": "m.py:M", "settings": {}, "environment": {}, "gpus": ["NVIDIA H200"] * 2, "driver": "580.1", "cores": 16,
    "seconds": 2.0, "vram_per_replica_bytes": 7 * 2**30, "target_digest": "0123456789abcdef", "torch": None,
}  # fmt: skip
VOID = frozenset({"meta", "br", "circle", "rect", "path", "polyline"})


def row(replicas: int, size: int, rate: float, p99_s: float, *, mps: bool = False, steady: bool = True) -> Row:
    """A measured configuration."""
    figures: dict[str, Any] = {"answers_per_s": rate, "p50_s": p99_s * 0.8, "p99_s": p99_s, "alone_s": 0.01}
    return Row(Cell(replicas, size, mps), Outcome.MEASURED, steady=steady, footprint_bytes=2**30, **figures)


ROWS = [
    row(1, 1, 100, 0.01), row(1, 8, 300, 0.05), row(4, 8, 900, 0.2, mps=True), row(4, 1, 250, 0.04, mps=True),
    row(4, 8, 310, 0.3, steady=False), Row(Cell(9, 8, mps=True), Outcome.DOES_NOT_FIT, "9 > <b>8</b> & more"),
]  # fmt: skip


class Reader(HTMLParser):
    """Reads a page; every element has to be closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(page: str) -> Reader:
    """The page, well-formed."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    return reader


def report(rows: list[Row] = ROWS, *, max_latency_s: float | None = None, left: int = 0, **facts: Any) -> Reader:
    """A report of these rows."""
    return read(render(Report(rows, {**FACTS, **facts}, max_latency_s, left, "2026-11-21 14:05")))


def test_it_names_what_to_keep_and_the_lines_for_it() -> None:
    """The choice, its figures, and what to put into orch.toml."""
    text = report().text
    assert "4 replicas, batches of 8, MPS on" in text
    assert 'replicas = 4\nmax_batch_size = 8\nmps = "on"' in text
    assert "\N{MULTIPLICATION SIGN}3.00" in text


def test_it_needs_nothing_else() -> None:
    """No script, and nothing from elsewhere: it can be sent around, and opened in ten years."""
    elements = report().elements
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in elements}
    assert not [attributes for _, attributes in elements if {"src", "href", "onclick"} & attributes.keys()]
    assert "url(" not in render(Report(ROWS, FACTS, None, 0, ""))


def test_every_row_is_in_the_table() -> None:
    """Also what could not be had, with the reason."""
    reader = report()
    assert sum(tag == "tr" for tag, _ in reader.elements) == 1 + len(ROWS)
    below = reader.text.partition("to keep")[2]
    assert "does not fit9 replicas, batches of 8, MPS on: 9 > <b>8</b> & more" in below


def test_a_reason_is_told_once() -> None:
    """With all that it holds for."""
    rows = [*ROWS, *(Row(Cell(n, 8, mps=False), Outcome.FAILED, "a long story") for n in (5, 6))]
    text = report(rows).text
    assert text.count("a long story") == 1
    assert "5 replicas, batches of 8, MPS off; 6 replicas, batches of 8, MPS off: a long story" in text


def test_what_was_not_asked_for_is_marked_and_never_best() -> None:
    """It is known all the same."""
    faster = row(8, 8, 2000, 0.1)
    page = read(render(Report(ROWS, FACTS, None, 0, "", [faster])))
    assert "4 replicas, batches of 8, MPS on" in page.text.partition("Throughput")[0]
    assert [attributes.get("class") for tag, attributes in page.elements if tag == "tr"].count("other") == 1


def test_the_outstanding_requests_of_a_row_are_shown() -> None:
    """The latency is that under such a load."""
    assert "1,234" in report([dataclasses.replace(ROWS[0], outstanding=1234)]).text


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><b>', "&lt;", "' onclick='x"])
def test_everything_is_escaped(evil: str) -> None:
    """A model's name, a setting, a reason or a card are text, whatever they hold."""
    rows = [*ROWS, Row(Cell(1, 64, mps=False), Outcome.FAILED, evil)]
    reader = report(rows, target=evil, settings={evil: evil}, gpus=[evil], driver=evil)
    assert reader.text.count(evil) >= 5
    plain = report([*ROWS, Row(Cell(1, 64, mps=False), Outcome.FAILED, "x")], target="x", settings={"x": "x"})
    assert [tag for tag, _ in reader.elements] == [tag for tag, _ in plain.elements]


def test_what_is_best_and_what_is_on_the_front_is_told_without_colours() -> None:
    """By a sign, in the picture by a shape and a word."""
    reader = report()
    cells = reader.text.partition("Every configuration")[2].partition("to keep")[0]
    assert cells.count("★") == 1 + 1  # and one in the legend
    on_front = [each.cell for each in choice.front(ROWS)]
    assert on_front == [Cell(1, 1, mps=False), Cell(4, 1, mps=True), Cell(1, 8, mps=False), Cell(4, 8, mps=True)]
    assert cells.count("◆") == len(on_front)
    assert "best" in reader.text
    assert "~" in cells  # the one that was not steady


def test_a_limit_that_nothing_keeps_is_told() -> None:
    """With the lowest latency there is."""
    assert "No configuration has its p99 within 1.00 ms; the lowest is 10.0 ms." in report(max_latency_s=0.001).text
    assert "keep, p99 within 50.0 ms" in report(max_latency_s=0.05).text


def test_a_report_of_nothing_is_a_report() -> None:
    """It is written before anything is measured, and when nothing could be."""
    assert "Nothing is measured yet." in report([], left=6).text
    assert "About 6 configurations are not measured yet" in report([], left=6).text
    assert "No configuration could be measured" in report(ROWS[-1:]).text
    report(ROWS[:1])


def test_facts_that_say_nothing_are_left_out() -> None:
    """And those that do are in words."""
    text = report().text.partition("Measured for")[2]
    assert "2 \N{MULTIPLICATION SIGN} NVIDIA H200" in text
    assert "7.0 GiB" in text
    assert "0123456789ab" in text
    assert "torch" not in text
    assert "None" not in text


def test_without_a_gpu_mps_is_not_mentioned() -> None:
    """There is no such question."""
    text = report([row(1, 1, 100, 0.01), row(2, 1, 190, 0.01)], gpus=[]).text
    assert "MPS o" not in text
    assert "mps" not in text


# --- the picture


def picture(rows: list[Row], size: tuple[int, int] = WIDE, **options: Any) -> ET.Element:
    """The SVG, parsed as XML."""
    options = {"name": "p", "max_latency_s": None, "has_gpu": True, **options}
    return ET.fromstring(plot.plot(rows, choice.front(rows), choice.best(rows), size, **options))


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    """Elements that carry this class."""
    return [each for each in svg.iter() if name in each.get("class", "").split()]


def test_every_measured_row_is_a_point_of_its_shape() -> None:
    """A circle with MPS, a square without; each says its figures when pointed at."""
    svg = picture(ROWS)
    assert [each.tag for each in of_class(svg, "on")] == ["circle"] * 2
    assert [each.tag for each in of_class(svg, "off")] == ["rect"] * 3
    titles = [each.text or "" for each in svg.iter("title")]
    assert any("4 replicas, batches of 8, MPS on: 900 answers/s, p99 200 ms" in title for title in titles)
    assert svg.get("role") == "img"
    assert svg.find("desc") is not None


def test_the_front_is_a_line_through_its_points() -> None:
    """From the lowest latency to the highest throughput."""
    (line,) = of_class(picture(ROWS), "front")
    points = [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
    assert len(points) == len(choice.front(ROWS))
    assert points == sorted(points)
    assert [-y for _, y in points] == sorted(-y for _, y in points)


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_labels_overlap_nothing(size: tuple[int, int]) -> None:
    """A name that finds no free place is left out; the best one's is there."""
    many = [
        row(count, batch, 90 * count**0.8 * batch**0.7, 0.01 * batch**0.6 * count**0.3, mps=mps)
        for count in (1, 2, 4, 8)
        for batch in (1, 4, 16, 64)
        for mps in (True, False)
    ]
    svg = picture(many, size)
    labels = of_class(svg, "label")
    boxes = []
    for label in labels:
        x, y, width = float(label.get("x", "")), float(label.get("y", "")), len(label.text or "") * plot.CHAR_WIDTH
        boxes.append((x, y - plot.FONT, x + width, y))
        assert x >= plot.LEFT
        assert x + width <= size[0]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one[2] <= other[0] or one[0] >= other[2] or one[3] <= other[1] or one[1] >= other[3]
    assert any((label.text or "").endswith("best") for label in labels)


def test_a_limit_is_a_line_where_it_is_within_the_picture() -> None:
    """And nothing where it is not."""
    assert len(of_class(picture(ROWS, max_latency_s=0.1), "limit")) == 1
    assert of_class(picture(ROWS, max_latency_s=100.0), "limit") == []


@pytest.mark.parametrize(
    "values",
    [[5.0], [1.0, 9.9], [0.001, 3.0], [0.013, 0.52], [100.0, 101.0], [1e-4, 1e4], [0.9, 9.1], [1234.5, 98765.4], [0.2]],
)
def test_an_axis_holds_its_values_and_has_ticks(values: list[float]) -> None:
    """Some, but never more than there is room for; logarithmic from an order of magnitude on."""
    axis = plot.axis(values, 5)
    assert all(0 <= axis.at(value) <= 1 for value in values)
    assert 1 <= len(axis.ticks) <= (5 + 1 if not axis.is_log else 9)
    assert all(-1e-9 <= axis.at(tick) <= 1 for tick in axis.ticks)
    assert axis.is_log is (max(values) / min(values) >= plot.LOG_RATIO)
