"""When ``auto`` compiles."""

import pytest

from extract.config import load_extract_config
from extract.errors import ConfigError
from extract.running.compiling import FROM_FRAMES, compile_wanted


@pytest.mark.parametrize(
    ("setting", "device", "frames", "before", "wanted"),
    [
        ("auto", "cuda", FROM_FRAMES - 1, None, False),
        ("auto", "cuda", FROM_FRAMES, None, True),
        ("auto", "cuda", 1, True, True),
        ("auto", "cuda", 10**6, False, False),
        ("auto", "cpu", 10**6, None, False),
        ("on", "cpu", 0, False, True),
        ("on", "cuda", 1, False, True),
        ("off", "cuda", 10**6, True, False),
    ],
)
def test_when_it_compiles(setting, device, frames, before, wanted):
    assert compile_wanted(setting, device, lambda: frames, before) is wanted


def test_it_is_a_few_thousand_frames():
    """What the docstring reckons: seconds to load kept code over seconds saved per frame."""
    saved_s = (1 / 273 - 1 / 471) + (1 / 5_000 - 1 / 16_000) + (1 / 4_000 - 1 / 11_300)
    assert 7 / saved_s == pytest.approx(FROM_FRAMES, rel=0.1)
    assert 70 / saved_s == pytest.approx(38_000, rel=0.02)


@pytest.mark.parametrize(("said", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("true", "on")])
def test_on_and_off_are_words_here(said, meant):
    """YAML reads them as true and false."""
    assert load_extract_config("demo", [f"run.compile={said}"]).run.compile == meant
    with pytest.raises(ConfigError, match=r"run\.compile: Input should be 'auto', 'on' or 'off'"):
        load_extract_config("demo", ["run.compile=sometimes"])
