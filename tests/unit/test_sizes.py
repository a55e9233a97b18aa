"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.errors import ConfigError
from orch.planning.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("7GiB", 7_516_192_768),
        ("7GB", 7_000_000_000),
        ("512MiB", 536_870_912),
        ("512MB", 512_000_000),
        ("64KiB", 65_536),
        ("64KB", 64_000),
        ("2TiB", 2_199_023_255_552),
        ("2TB", 2_000_000_000_000),
        ("10B", 10),
        ("7516192768", 7_516_192_768),
        ("1.5 GiB", 1_610_612_736),
        ("0.1GB", 100_000_000),
        ("  7gib ", 7_516_192_768),
        ("7gb", 7_000_000_000),
        ("7GIB", 7_516_192_768),
    ],
)
def test_a_size_is_read_in_the_unit_it_names(text: str, num_bytes: int) -> None:
    """GB and GiB are both right, and different."""
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "7XB",
        "7 Gi B",
        "-7GiB",
        "+7GiB",
        "7,5GiB",
        "7.GiB",
        ".5GiB",
        "1e9",
        "0x10",
        "nan",
        "7GiB\n8",
        "\u0667GiB",
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    """The error names the setting, the text, what is allowed and an example."""
    with pytest.raises(ConfigError) as caught:
        parse_size(text, key="vram_per_replica")
    message = str(caught.value)
    assert message.startswith(f"vram_per_replica: {text!r}")
    assert "GiB or TiB" in message
    assert "for example 7GiB" in message


@pytest.mark.parametrize("text", ["7G", "7g", "7Gi"])
def test_a_bare_letter_is_refused_with_both_readings(text: str) -> None:
    """Docker and Kubernetes disagree about 7G, so orch asks."""
    with pytest.raises(ConfigError, match=r"write 7GiB .* or 7GB"):
        parse_size(text)


def test_bits_are_not_taken_for_bytes() -> None:
    """7Gb is seven gigabits to whoever writes the b small on purpose."""
    with pytest.raises(ConfigError, match="Gb reads as bits; write GB"):
        parse_size("7Gb")


@pytest.mark.parametrize("text", ["0", "0GiB", "0.0001B"])
def test_nothing_is_not_a_size(text: str) -> None:
    """A size says how much there is of something."""
    with pytest.raises(ConfigError, match="not at least one byte"):
        parse_size(text)


def test_a_number_too_long_to_be_a_size_is_refused() -> None:
    """No text makes the parser compute with thousands of digits."""
    with pytest.raises(ConfigError):
        parse_size("9" * 5000 + "GiB")


@given(st.text(max_size=20))
def test_any_text_is_a_positive_size_or_a_config_error(text: str) -> None:
    """Reading a size is total."""
    try:
        num_bytes = parse_size(text)
    except ConfigError:
        return
    assert num_bytes > 0


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (268_435_456, "256.0 MiB"),
        (7_516_192_768, "7.0 GiB"),
        (2**30 - 1, "1.0 GiB"),
        (2**40, "1.0 TiB"),
        (5000 * 2**40, "5000.0 TiB"),
        (-1_610_612_736, "-1.5 GiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_it_fills(num_bytes: int, text: str) -> None:
    """People read one decimal; a value just under a unit is shown as that unit."""
    assert format_size(num_bytes) == text


@given(st.integers(min_value=1, max_value=10**17))
def test_what_is_shown_reads_back_within_a_twentieth_of_its_unit(num_bytes: int) -> None:
    """The shown form is the read form, to the one decimal shown."""
    shown = format_size(num_bytes)
    unit = shown.split()[1]
    assert abs(parse_size(shown) - num_bytes) <= 0.051 * parse_size(f"1{unit}")
