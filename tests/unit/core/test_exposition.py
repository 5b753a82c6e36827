"""What the format's own reader would take apart wrongly is never written."""

import re

import pytest

from appliance.core.exposition import Sample, family

LINE = re.compile(r'm(?:_sum)?\{a="((?:[^"\\\n]|\\["\\n])*)"\} (\S+)')


def test_a_family_is_written_as_the_format_says() -> None:
    samples = [Sample({"model": "a", "digest": "00ff"}, 3), Sample({}, 0.25, "_sum")]
    assert family("paddock_x", "gauge", "What it is.", samples) == (
        "# HELP paddock_x What it is.\n"
        "# TYPE paddock_x gauge\n"
        'paddock_x{model="a",digest="00ff"} 3\n'
        "paddock_x_sum 0.25\n"
    )


def test_a_family_without_samples_is_still_described() -> None:
    assert family("m", "counter", "t", []) == "# HELP m t\n# TYPE m counter\n"


@pytest.mark.parametrize("text", ['a"} 1\nb{c="', "\\", '\\"', "\n", "\\n", 'x"', "ü 🦉", ""])
def test_text_of_a_label_does_not_end_it(text: str) -> None:
    *_described, line = family("m", "gauge", "t", [Sample({"a": text}, 1)]).removesuffix("\n").split("\n")
    found = LINE.fullmatch(line)
    assert found
    assert re.sub(r'\\(["\\n])', lambda one: "\n" if one[1] == "n" else one[1], found[1]) == text


@pytest.mark.parametrize("number", [0, 2**53, 0.0, 1e-9, 2.0**53, 0.1 + 0.2])
def test_no_number_loses_digits(number: float) -> None:
    line = family("m", "gauge", "t", [Sample({"a": ""}, number)]).splitlines()[-1]
    assert float(line.rpartition(" ")[2]) == number
