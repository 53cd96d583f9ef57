"""How messages speak: values as they were given, numbers out of range, and the word meant."""

import pytest

from ratelimit.words import near, shown, whole


def test_a_value_is_quoted_and_cut_to_60_characters() -> None:
    assert shown("x" * 58) == repr("x" * 58)
    assert shown("x" * 59) == "'" + "x" * 56 + "..."
    assert shown(None) == "None"
    assert shown("a\x1b[2J") == r"'a\x1b[2J'"


@pytest.mark.parametrize(
    ("value", "least", "most", "message"),
    [
        (0, 1, None, "workers is 0; it is at least 1"),
        (0, 1, 9, "workers is 0; it is 1 to 9"),
        (10, 1, 9, "workers is 10; it is 1 to 9"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(
    value: int, least: int, most: int | None, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        whole("workers", value, least, most)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_only_an_int_is_a_whole_number(value: object) -> None:
    with pytest.raises(TypeError) as caught:
        whole("workers", value, 0)
    assert str(caught.value) == f"workers is a whole number, not {type(value).__name__}"


def test_a_number_in_range_passes() -> None:
    for value in (1, 9):
        whole("workers", value, 1, 9)
    whole("workers", 10**30, 1)


def test_a_misspelled_word_is_answered_with_the_one_meant() -> None:
    assert near("GTE", ["GET", "POST"]) == "; did you mean GET"
    assert near("minut", ["minute", "hour"], write=repr) == "; did you mean 'minute'"
    assert near("fortnight", ["minute", "hour"]) == ""
    assert near("GTE", ["GET"], 0.9) == ""
