"""The status page as files: nothing from elsewhere, nothing inline, and colours that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import orch_gateway

PAGE = Path(orch_gateway.__file__).parent / "page"
FILES = sorted(path.name for path in PAGE.iterdir())
# An XML namespace is a name, not an address; nothing is fetched from it.
NAMESPACE = "http://www.w3.org/2000/svg"
# Contrast that WCAG 2 asks for (1.4.3 and 1.4.11): of text, and of what else must be told apart.
TEXT, SHAPE = 4.5, 3.0
PAIRS = [
    *[(text, ground, TEXT) for text in ("text", "soft", "accent") for ground in ("ground", "surface", "sunken")],
    *[(kind, f"{kind}-ground", TEXT) for kind in ("good", "warn", "bad")],
    *[(kind, ground, TEXT) for kind in ("good", "warn", "bad") for ground in ("ground", "surface")],
    ("text", "warn-ground", TEXT),
    ("surface", "accent", TEXT),
    *[(line, "surface", SHAPE) for line in ("accent", "second", "bad", "edge")],
    *[(part, "sunken", SHAPE) for part in ("used", "others", "text")],
    ("edge", "ground", SHAPE),
]
SCHEMES = ("light", "dark")


def read(name: str) -> str:
    """A file of the page."""
    return (PAGE / name).read_text()


def colours() -> dict[str, tuple[str, str]]:
    """The light and the dark value of each colour in the style sheet."""
    found = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", read("page.css"))
    return {name: (light, dark) for name, light, dark in found}


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_computed_as_defined() -> None:
    """Black on white is 21, and grey #767676 the lightest that passes for text."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert TEXT < contrast("#767676", "#ffffff") < TEXT + 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_colours_that_meet_can_be_told_apart(front: str, back: str, least: float, scheme: str) -> None:
    """Text, icons, bars and lines, in light and in dark."""
    number = SCHEMES.index(scheme)
    assert contrast(colours()[front][number], colours()[back][number]) >= least


def test_every_colour_is_named_once() -> None:
    """A colour beside the list would not be tested."""
    rules = re.sub(r"^  --[a-z-]+:.*$", "", read("page.css"), flags=re.MULTILINE)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", rules) == []
    used = set(re.findall(r"var\(--([a-z-]+)\)", read("page.css")))
    assert used - {"sans", "mono", "gap"} <= colours().keys()


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    """It works without internet."""
    text = read(name).replace(NAMESPACE, "")
    assert re.findall(r"https?://|\bsrc=\"//|@import|\burl\(", text) == []


def test_nothing_is_inline() -> None:
    """A policy without 'unsafe-inline' lets all of it pass."""
    html = read("index.html")
    assert re.findall(r"\son[a-z]+=|\sstyle=|javascript:|<style", html) == []
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html))
    scripts = "".join(read(name) for name in FILES if name.endswith(".js"))
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\"style\"", scripts)
        == []
    )


def test_every_file_is_used_and_there() -> None:
    """What the page and its scripts name are exactly its files."""
    named = set(re.findall(r"(?:href|src)=\"([a-z]+\.[a-z]+)\"", read("index.html")))
    for name in FILES:
        named |= set(re.findall(r"from \"\./([a-z]+\.js)\"", read(name)))
    assert named | {"index.html"} == set(FILES)


def test_every_element_that_scripts_look_for_is_in_the_page() -> None:
    """By its id."""
    ids = set(re.findall(r"\bid=\"([a-z-]+)\"", read("index.html")))
    wanted = set(re.findall(r"\$\(\"([a-z-]+)\"\)", read("page.js")))
    assert wanted <= ids
    assert len(wanted) > 15
    referred = set(re.findall(r"(?:aria-labelledby|for)=\"([a-z-]+)\"", read("index.html")))
    assert referred <= ids


def test_every_classes_rule_is_used() -> None:
    """No rule is left of what is gone."""
    rules = re.sub(r"/\*.*?\*/", "", read("page.css"), flags=re.DOTALL)
    classes = set(re.findall(r"\.([a-z][a-z-]*)(?=[^{}]*\{)", rules))
    rest = "".join(read(name) for name in FILES if not name.endswith(".css"))
    assert {each for each in classes if not re.search(rf"\b{each}\b", rest)} == set()


def test_the_page_is_small() -> None:
    """All of it, before compression: less than one picture."""
    assert sum((PAGE / name).stat().st_size for name in FILES) < 80_000
