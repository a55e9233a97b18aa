"""The status page in a real browser, beside a real instance."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.browser.chromium import Browser, Page
from tests.process.harness import Instance, Place, eventually

PHONE = 390
UNKNOWN = "\N{EN DASH}"


def address_of(instance: Instance) -> str:
    """Where its page is."""
    url = instance.status()["gateways"][0]["url"]
    return f"{url}/"


def opened(browser: Browser, instance: Instance, width: int = 1280, *, dark: bool = False) -> Page:
    """The page, once it shows the instance."""
    page = browser.open(address_of(instance), width, dark=dark)
    eventually(lambda: page.text("#pulse-word") == "live", within=10.0)
    return page


def tiles(page: Page) -> dict[str, str]:
    """The state of each replica, as its tile shows it in words."""
    program = """Object.fromEntries([...document.querySelectorAll('.tile')].map(
        (tile) => [tile.querySelector('h4').innerText, tile.querySelector('.state').innerText]))"""
    found: dict[str, str] = page.run(program)
    return found


def figure(page: Page, replica: str, name: str) -> str:
    """One figure of a replica's tile."""
    program = f"""[...document.querySelectorAll('.tile')].find((tile) => tile.dataset.key === '{replica}')
        .querySelector('[data-key="{name}"] dd').innerText"""
    found = page.run(program)
    assert isinstance(found, str)
    return found


def test_the_page_shows_the_instance_and_goes_on_doing_so(browser: Browser, instance: Instance) -> None:
    """Nothing comes from elsewhere, nothing is refused by the policy, and figures change by themselves."""
    page = opened(browser, instance)
    assert page.text("h1") == "default"
    assert page.text("#state") == "READY"
    assert "serves Slow" in page.text("#facts")
    assert tiles(page) == {"r0": "READY", "r1": "READY"}
    assert re.fullmatch(r"\d+\.\d MiB +footprint \d+\.\d MiB", page.text(".tile .held")), "what it holds now"
    answered = sum(int(figure(page, each, "answered")) for each in ("r0", "r1"))
    client = instance.client()
    for number in range(40):
        client.request(number)
    eventually(lambda: sum(int(figure(page, each, "answered")) for each in ("r0", "r1")) == answered + 40)
    eventually(lambda: "in the model" in page.text("#stages"))
    time = r"\S+ \S+"
    told = (
        f"Lately, on average: {time} in the queue, {time} at the worker, {time} in the model; [0-9.]+ rows in a batch."
    )
    assert re.fullmatch(told, page.text("#stages"))
    assert page.complaints() == []
    assert {url for url in page.asked() if not url.startswith(address_of(instance))} == set()


def test_a_killed_replica_is_shown_dead_and_comes_back(browser: Browser, instance: Instance) -> None:
    """Its tile says so in words, the events say why, and both without a reload."""
    page = opened(browser, instance)
    restarts = int(figure(page, "r0", "restarts"))
    instance.kill("r0")
    eventually(lambda: tiles(page)["r0"] in ("BACKOFF", "STARTING", "LOADING"))
    assert tiles(page)["r1"] == "READY"
    assert page.text("#state") == "DEGRADED"
    eventually(lambda: "was killed (SIGKILL)" in page.text(".tile[data-key=r0] .why"))
    assert "was killed (SIGKILL)" in page.text("#events .warning")
    assert "was killed (SIGKILL)" in page.text("#said"), "a screen reader is told"
    eventually(lambda: tiles(page)["r0"] == "READY" and page.text("#state") == "READY", within=15.0)
    assert int(figure(page, "r0", "restarts")) == restarts + 1


def test_it_says_that_the_server_is_gone_and_finds_it_again(browser: Browser, place: Place) -> None:
    """What is shown meanwhile is marked as old; the next instance at the address is shown without a reload."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--http=127.0.0.1:{free.getsockname()[1]}"
    first = place.up("plain.py:Echo", address)
    page = opened(browser, first)
    first.stop()
    eventually(lambda: page.text("#pulse-word") == "no connection", within=10.0)
    assert "does not answer" in page.text("#banner")
    assert "Trying again" in page.text("#said")
    assert page.text("h1") == "default", "what was known is still there"
    second = place.up("plain.py:Steady", address)
    eventually(lambda: page.text("#pulse-word") == "live", within=10.0)
    assert second.process.poll() is None
    assert page.run("document.querySelector('#banner').hidden")
    assert "serves Steady" in page.text("#facts")


def test_it_asks_for_a_key_where_one_is_needed(browser: Browser, place: Place) -> None:
    """A wrong one is asked for again, the right one is used from then on, and nothing is shown without."""
    token = place.orch("keys", "add", "tester").out.strip()
    instance = place.up("plain.py:Echo", "--http=127.0.0.1:0")
    page = browser.open(address_of(instance))
    eventually(lambda: page.text("#pulse-word") == "needs a key")
    assert tiles(page) == {}
    for typed, expected in (("nonsense", "That API key is not accepted. Another one?"), (token, "")):
        assert page.run("document.activeElement.id") == "key"
        page.call("Input.insertText", text=typed)
        page.run("document.querySelector('#key-form').requestSubmit()")
        if expected:
            eventually(lambda: page.text("#key-label") == expected)  # noqa: B023  called before the next turn
    eventually(lambda: tiles(page) == {"r0": "READY"})
    assert page.run("document.querySelector('#key-form').hidden")
    assert "Bearer $ORCH_API_KEY" in page.text("#panel-0 code")


def test_what_can_be_copied_works(browser: Browser, instance: Instance) -> None:
    """Each snippet, typed into a shell or a Python as it stands."""
    page = opened(browser, instance)
    texts = [page.run(f"document.querySelector('#panel-{n} code').textContent") for n in range(3)]
    environ = instance.place.environ({"PYTHONWARNINGS": "ignore"})
    for text, words in zip(texts, (["bash", "-c"], [sys.executable, "-c"], [sys.executable, "-c"]), strict=True):
        done = subprocess.run([*words, text], env=environ, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        assert "hello" in done.stdout


def test_light_and_dark_follow_the_system_until_somebody_chooses(browser: Browser, instance: Instance) -> None:
    """The choice outlives a reload."""

    def ground() -> Any:
        return page.run("getComputedStyle(document.body).backgroundColor")

    page = opened(browser, instance)
    light = ground()
    page.prefer(dark=True)
    dark = ground()
    assert dark != light
    for theme, expected in (("light", light), ("dark", dark), ("system", dark), ("light", light)):
        page.run("document.querySelector('#theme').click()")
        assert page.text("#theme") == f"Theme: {theme}"
        assert ground() == expected
    page.go(address_of(instance))
    eventually(lambda: page.text("#theme") == "Theme: light")
    assert ground() == light
    page.run("localStorage.clear()")


@pytest.mark.parametrize("width", [320, PHONE, 800])
def test_nothing_is_wider_than_the_window(browser: Browser, instance: Instance, width: int) -> None:
    """No phone scrolls sideways; what is long, such as code, scrolls in its own box."""
    page = opened(browser, instance, width)
    assert page.run("document.documentElement.scrollWidth") == width
    program = """[...document.querySelectorAll('main *')].filter((each) => each.getBoundingClientRect().right >
        innerWidth + 0.5 && !each.closest('pre, .unseen')).map((each) => each.outerHTML.slice(0, 80))"""
    assert page.run(program) == []


def test_everything_that_can_be_used_can_be_reached_by_keyboard(browser: Browser, instance: Instance) -> None:
    """In order, each with a name and a visible outline; tabs and charts take the arrow keys."""
    page = opened(browser, instance)
    names = []
    for _ in range(40):
        page.press("Tab")
        found = page.run(
            """(() => { const at = document.activeElement, look = getComputedStyle(at);
            return at === document.body ? null : [at.id || at.className.baseVal || at.innerText, look.outlineStyle,
                Boolean(at.innerText || at.getAttribute('aria-label') || at.getAttribute('aria-labelledby'))] })()"""
        )
        if found is None:
            break
        name, outline, is_named = found
        assert outline != "none", f"{name} does not show that it has the focus"
        assert is_named, f"{name} has no name"
        names.append(name)
    assert names[0] == "Skip to the figures"
    assert [name for name in names if name in ("theme", "plot", "events", "tab-0")] == [
        "theme", "plot", "plot", "events", "tab-0",
    ]  # fmt: skip
    page.run("document.querySelector('#tab-0').focus()")
    page.press("ArrowRight")
    assert page.run("document.activeElement.id") == "tab-1"
    assert "from orch import Client" in page.text("#panel-1 code")
    assert page.run("document.querySelector('#panel-0').hidden")
    page.run("document.querySelector('#rate .plot').focus()")
    page.press("ArrowLeft")
    assert page.text("#rate .legend").endswith("s ago")


def test_charts_and_figures_are_written_as_people_read_them(browser: Browser, instance: Instance) -> None:
    """The functions that need no page, asked in the page."""
    page = opened(browser, instance)
    program = """(async () => {
        const words = await import('./words.js'), charts = await import('./charts.js');
        return { size: [null, 0, 1023, 1024, 7.04 * 2 ** 30].map(words.size),
            seconds: [null, 0, 0.00042, 0.0082, 0.123, 4.24, 61].map((value) => words.seconds(value).join(' ')),
            lasted: [null, 0.4, 61, 7322, 93784].map((value) => words.lasted(value)),
            ticks: [0, 0.7, 5, 1999, 2000, 2600].map(charts.ticks),
            path: charts.path([[0, 1, 60], [1, 2, 58], [2, null, 56], [3, 4, 54], [4, 4, 10]]) } })()"""
    assert page.run(program) == {
        "size": [UNKNOWN, "0 B", "1023 B", "1.0 KiB", "7.0 GiB"],
        "seconds": [f"{UNKNOWN} ", "0 ", "420 µs", "8.2 ms", "123 ms", "4.2 s", "61 s"],
        "lasted": [UNKNOWN, "0 s", "1 min 1 s", "2 h 2 min", "1 d 2 h"],
        "ticks": [
            [0, 1],
            [0, 0.2, 0.4, 0.6000000000000001, 0.8],
            [0, 2, 4, 6],
            [0, 500, 1000, 1500, 2000],
            [0, 500, 1000, 1500, 2000],
            [0, 1000, 2000, 3000],
        ],
        "path": "M0.0 1.0L1.0 2.0M3.0 4.0M4.0 4.0",
    }
