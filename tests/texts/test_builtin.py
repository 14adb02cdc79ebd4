"""The texts of the package: how many there are, which are held back, and that none is in both parts."""

from __future__ import annotations

import hashlib

import pytest

from arrowquant_dist.texts import read_texts
from arrowquant_dist.texts.builtin import CALIBRATION, DOMAINS, HELD_BACK, MORE, builtin_texts
from tests.conftest import CHECKOUT

CORPUS = CHECKOUT / "arrowquant_dist" / "texts" / "corpus"


def lines_of(domain: str) -> list[str]:
    return (CORPUS / f"{domain}.txt").read_bytes().decode().removesuffix("\n").split("\n")


def test_there_are_two_thousand_of_twenty_domains_and_none_twice() -> None:
    assert sorted(DOMAINS) == sorted(path.stem for path in CORPUS.glob("*.txt"))
    every = [line for domain in DOMAINS for line in lines_of(domain)]
    assert len(every) == len(set(every)) == 2000
    assert all(line == line.strip() and line.isprintable() for line in every)


def test_one_of_each_five_lines_is_held_back_from_five_to_five_the_next() -> None:
    expected = [lines_of(domain)[5 * run + run % 5] for domain in DOMAINS for run in range(20)]
    assert [*builtin_texts(HELD_BACK)] == expected
    assert len(expected) == 400


def test_no_text_is_in_both_parts_and_all_are_in_one() -> None:
    held_back, calibration = {*builtin_texts(HELD_BACK)}, {*builtin_texts(CALIBRATION)}
    assert not held_back & calibration
    assert len(held_back) + len(calibration) == 2000


def test_both_parts_have_texts_of_the_same_lengths() -> None:
    means = [
        sum(len(text.split()) for text in part) / len(part)
        for part in (builtin_texts(HELD_BACK), builtin_texts(CALIBRATION))
    ]
    assert means == pytest.approx([22.9, 25.1], abs=0.3)


def test_the_held_back_part_never_changes() -> None:
    texts = "\n".join(builtin_texts(HELD_BACK)).encode()
    assert (
        hashlib.sha256(texts).hexdigest()
        == "de2f1f0c97ef5625fa9cb3ef70a99c9a8e9d3719dc65659e22bcd9d6b6b80bb4"
    )


def test_more_are_those_to_calibrate_with_and_then_others_and_none_that_is_held_back() -> None:
    calibration, more = builtin_texts(CALIBRATION), builtin_texts(MORE)
    assert more[: len(calibration)] == calibration
    assert len(set(more)) == len(more)
    assert not set(more) & {*builtin_texts(HELD_BACK)}
    others = more[len(calibration) :]
    assert all(text == text.strip() and text.isprintable() and text[-1] in ".!?" for text in others)
    assert all(5 <= len(text.split()) <= 56 for text in others)
    assert (
        (CORPUS / "wordnet" / "LICENSE")
        .read_text()
        .startswith("This software and database is being provided")
    )


@pytest.mark.parametrize(("name", "texts"), [(CALIBRATION, 1600), (MORE, 3277), (HELD_BACK, 400)])
def test_they_are_read_by_their_name(name: str, texts: int) -> None:
    found = read_texts(name)
    assert (found.name, len(found), found.skipped) == (name, texts, 0)
