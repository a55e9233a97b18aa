"""Generated files are what they were. `python -m tests.golden.cases` keeps a change that is meant; read its diff."""

from __future__ import annotations

import pytest

from tests.golden.cases import CASES, HERE, Case, kept


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_generated_files_are_as_kept(case: Case) -> None:
    """Each of them, to the letter, and no other."""
    assert dict(case.files()) == kept(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_says_who_wrote_it_and_ends_in_a_line(case: Case) -> None:
    """Whoever finds it knows what to change instead; no line has blanks at its end."""
    for name, text in case.files().items():
        assert "`orch deploy" in "".join(text.splitlines(keepends=True)[:3]), name
        assert text.endswith("\n"), name
        assert not text.endswith("\n\n"), name
        assert [line for line in text.splitlines() if line != line.rstrip()] == [], name


def test_every_kept_folder_is_a_case() -> None:
    """What is compared with nothing would only look like a test."""
    assert sorted(path.name for path in HERE.iterdir() if path.name[0].isdigit()) == [case.name for case in CASES]
