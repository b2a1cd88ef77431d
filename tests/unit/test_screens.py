"""Every page has its picture, in the light and in the dark, at a desk and on a phone."""

from __future__ import annotations

from tests.browser import screens


def test_every_page_has_its_pictures() -> None:
    assert screens.forgotten() == set()
    names = [name for one in screens.SCREENS.values() for name in one]
    wanted = {f"{name}-{device}-{theme}.webp" for name in names for device in screens.SIZES for theme in screens.THEMES}
    assert {file.name for file in screens.FOLDER.iterdir()} == wanted
