"""The texts that come with the package: 2,000 in English, 100 of each of twenty domains (corpus/README.md).

`builtin` is for calibration and distillation, `builtin:held-back` for judging the result. Of each five lines of a
domain one is held back, in the next five the one after it: lines 1, 7, 13, 19, 25, then 26, 32 … (Every fifth line
would not do: long and short texts alternate, and the 400 would have 52 words each, where the average of all is 25.)

`builtin:more` is `builtin` and 1,677 texts of WordNet's example sentences, chosen for words that the others do not
have.
"""

from __future__ import annotations

from pathlib import Path

CALIBRATION, HELD_BACK, MORE = "builtin", "builtin:held-back", "builtin:more"
NAMES = CALIBRATION, MORE, HELD_BACK
DOMAINS = (
    *(
        "arts",
        "cooking",
        "dialogue",
        "education",
        "engineering",
        "fiction",
        "finance",
        "history",
        "law",
        "medicine",
    ),
    *(
        "nature",
        "news",
        "questions",
        "reviews",
        "science",
        "society",
        "sport",
        "technology",
        "travel",
        "work",
    ),
)
_FOLDER = Path(__file__).parent / "corpus"
_EACH = 5


def builtin_texts(name: str) -> tuple[str, ...]:
    """The 1,600 texts of CALIBRATION, for MORE these and 1,677 after them, or the 400 of HELD_BACK; domain by domain,
    in the order of their files."""
    found: list[str] = []
    for domain in DOMAINS:
        lines = enumerate(_lines(f"{domain}.txt"))
        found += (line for index, line in lines if _is_held_back(index) == (name == HELD_BACK))
    return (*found, *_lines("wordnet/sentences.txt")) if name == MORE else tuple(found)


def _lines(path: str) -> list[str]:
    return (_FOLDER / path).read_text(encoding="utf-8").split("\n")[:-1]


def _is_held_back(index: int) -> bool:
    """Whether a line is held back. index: number of the line in its file, from 0."""
    run, place = divmod(index, _EACH)
    return place == run % _EACH
