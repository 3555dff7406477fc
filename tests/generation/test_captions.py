"""What a language model is asked for captions, and what becomes of its answers."""

import pytest

from segjax.errors import ConfigError
from segjax.generation import captions
from segjax.generation.captions import Answer, Limits, Request
from segjax.generation.prompts import Prompt

CLASSES = ("road", "traffic light", "car")


def clean(text, cut=False):
    return list(captions.lines(Answer(text, cut)))


@pytest.mark.parametrize(
    "line",
    [
        "A photo of a car at dusk.",
        "1. A photo of a car at dusk.",
        "12) A photo of a car at dusk.",
        "(3) A photo of a car at dusk.",
        "[4]: A photo of a car at dusk.",
        "- A photo of a car at dusk.",
        "  *   A photo of a car at   dusk.  ",
        "• “A photo of a car at dusk.”",
        '5. "A photo of a car at dusk.",',
        "6. **A photo of a car at dusk.**",
        "Caption 7: `A photo of a car at dusk.`",
        "a) A photo of a car at dusk.",
        "Prompt #8 - 'A photo of a car at dusk.'",
        "## 9. A photo of a car at dusk.",
    ],
)
def test_marks_around_a_caption_go(line):
    assert clean(line) == ["A photo of a car at dusk."]


@pytest.mark.parametrize(
    "line", ["A photo of 3 cars.", "4K photo of the car's lights", "A 'stop' sign at night", "2 buses in the rain", "A van - and snow"]
)
def test_what_belongs_to_a_caption_stays(line):
    assert clean(line) == [line]


def test_small_talk_fences_and_blank_lines_go():
    answer = "Sure! Here are 2 captions:\n\n```text\n1. A wet road\n\n2. A dry road\r\n```\nLet me know if you want more.\nNight:\n---\n"
    assert clean(answer) == ["A wet road", "A dry road"]


def test_no_character_that_would_break_a_file():
    assert clean("A\x1cwet\u2028road\x85at\b \ufffddusk\ud83d, caf\u00e9 \U0001f327") == ["A wet road at dusk , caf\u00e9 \U0001f327"]


def test_arrays_of_texts():
    assert clean('```json\n["A wet road,", "2. A dry road"]\n```') == ["A wet road", "A dry road"]
    assert clean('[{"caption": "A wet road"}]') == ["A wet road"]
    assert clean("[a wet road") == ["[a wet road"]
    assert clean("[1, 2]") == ["[1, 2]"]


def test_a_line_that_was_cut_off():
    assert clean("A wet road\nA dry ro", cut=True) == ["A wet road"]
    assert clean("A wet road\nA dry road") == ["A wet road", "A dry road"]
    assert clean("A wet ro", cut=True) == ["A wet ro"]


def test_collected_in_order_different_and_of_the_right_length():
    answers = [
        (Request(0, "", "road"), Answer("1. A wet road at dusk\n2. a WET road, at dusk!\n3. A road\n4. A road by the sea", False)),
        (Request(1, "", "car"), Answer("A car on a road by the sea in winter\nA wet road at dusk\nA red car\nA blue car", False)),
    ]
    found = captions.collect(answers, Limits(3, 6))
    assert found.prompts == [
        Prompt("A wet road at dusk", "road"),
        Prompt("A road by the sea", "road"),
        Prompt("A red car", "car"),
        Prompt("A blue car", "car"),
    ]
    assert found.dropped == {"duplicate": 2, "too short": 1, "too long": 1}
    for count in range(5):
        assert captions.collect(answers, Limits(3, 6), count).prompts == found.prompts[:count]


def test_a_word_without_end_is_too_long():
    assert captions.collect([(Request(0, "", ""), Answer("x" * 100, False))], Limits(1, 6)).dropped["too long"] == 1


def test_requests_by_plan():
    asked = captions.request(4, "{number} of {classes}, {not this}", CLASSES, "all", 7)
    assert asked == (4, "7 of road, traffic light, car, {not this}", "")
    asked = captions.request(4, "{number} of {class}", CLASSES, "each", 7)
    assert asked == (4, "7 of traffic light", "traffic light")
    own = captions.request(5, captions.INSTRUCTION, CLASSES, "each", 1)
    assert own.text.endswith(" In every caption this time: car.") and "{" not in own.text
    assert "traffic light, car" in captions.request(0, captions.INSTRUCTION, CLASSES, "all", 1).text


def test_requests_that_make_no_sense():
    with pytest.raises(ConfigError, match="plan='some': expected all or each"):
        captions.request(0, "", CLASSES, "some", 1)
    with pytest.raises(ConfigError, match="needs classes"):
        captions.request(0, "", (), "each", 1)
    with pytest.raises(ConfigError, match="asks for {class}"):
        captions.request(0, "a {class}", CLASSES, "all", 1)
