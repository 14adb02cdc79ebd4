"""Strangers' regexes match what Python's `re` matches, and no pattern takes exponential time."""

from __future__ import annotations

import random
import re
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arrowquant_dist.checkpoint.quantized import linear_regex
from arrowquant_dist.checkpoint.quantized.linear_regex import LinearRegex, begins, occurs
from arrowquant_dist.checkpoint.quantized.model_config import ModelConfig
from arrowquant_dist.checkpoint.quantized.schemes import read_schemes
from arrowquant_dist.errors import InvalidCheckpoint

NAMES = [
    *("lm_head", "model.layers.0.self_attn.q_proj", "model.layers.12.mlp.gate_proj", "model.embed_tokens"),
    *("model.layers.3.mlp.experts.7.down_proj", "model.layers.3.mlp.gate", "vision.blocks.1.attn", "a.gate"),
    *("", "x\n", "gate\n", "]x", "a]", "x-y", "model.layers.30.block_sparse_moe.gate", "é.²", "\n"),
]
# Of configs that llm-compressor, GPTQModel and others have published, and what else people write.
PATTERNS = [
    *(r".*self_attn.*", r"^lm_head$", r".*mlp\.(gate|up|down)_proj$", r"model\.layers\.\d+\..*", r".*"),
    *(r"^(?!.*(lm_head|gate)).*", r"^(?:(?!vision).)*$", r"(?!.*gate$).*", r".*\.(q|k|v|o)_proj", r"lm_head"),
    *(
        r".*block_sparse_moe\.gate",
        r".*experts\.\d{1,3}\.(w1|w2|down_proj)$",
        r"model\.layers\.(1[0-9]|[0-9])\..*",
    ),
    *(
        r".*\bgate\b.*",
        r".*\Bate",
        r"[^.]+$",
        r"[a-z_]*$",
        r"(a+)+$",
        r"(?=model).*proj",
        r"x$",
        r"x\Z",
        r"\Ax",
    ),
    *(
        r"(?:a|b|)*",
        r"(model|lm).*?_head",
        r"[]a]x?",
        r"[^]]*\]",
        r".*layers\.[^3].*",
        r"(?P<n>model)\.",
        r"[\w.-]+",
    ),
    *(
        r"a{2}|.{3,5}m",
        r"\w+\.\w+\.\d+\.\w+\.\w+$",
        r"(?!a)(?!b)(?=.*x).*",
        r"((a|b)*|c)*$",
        r"{x",
        r"a{,2}",
        r"\.?",
    ),
    *(
        r"(?!)",
        r"()",
        r"|x",
        r"(?:)*x",
        r"[\s\S]*\n",
        r"\W",
        r"\D+\d",
        r"[a\]]",
        r"x{0}",
        r"$",
        r"^^x",
        r"x|$",
    ),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_says_what_re_says(pattern: str) -> None:
    for name in NAMES:
        assert begins(pattern, name) == (re.match(pattern, name) is not None), name
        assert occurs(pattern, name) == (re.search(pattern, name) is not None), name


@pytest.mark.parametrize(
    "pattern", [r"\w\b(?=a)a", r"\w\ba", r"\w\b\.", r"\w\B(?=1)", r"\w\b(?=\.)\.\w", r"\w+\b\.x"]
)
def test_a_boundary_behind_a_word_s_character_is_where_re_has_it(pattern: str) -> None:
    for length in range(1, 4):
        for text in map("".join, product("a1.x", repeat=length)):
            assert begins(pattern, text) == (re.match(pattern, text) is not None), text


_ATOMS = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", "x", "^", r"\b", r"\B"])
_PARTS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{2,}"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=6,
)
_LOOKS = st.tuples(_PARTS, _PARTS, st.sampled_from(["(?!", "(?="])).map(lambda p: f"{p[2]}{p[0]}){p[1]}")


@settings(max_examples=500)
@given(st.one_of(_PARTS, _LOOKS, st.tuples(_PARTS, _LOOKS).map("".join)), st.text("ab.x1", max_size=7))
def test_any_pattern_says_what_re_says(pattern: str, text: str) -> None:
    assume(text or r"\B" not in pattern)  # re had no \B in an empty text before Python 3.14
    try:
        regex = LinearRegex(pattern)
    except ValueError as error:
        assert "boundary in a lookahead" in str(error)  # noqa: PT017
        return
    assert regex.begins(text) == (re.match(pattern, text) is not None)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "pattern",
    [
        *(
            r"(a+)+$",
            r"(a*)*$",
            r"(a|a)*$",
            r"(a|aa)+$",
            r"(.*a){30}$",
            r"(a?){100}a{100}$",
            r"([a-z]+)*[0-9]$",
        ),
        *(
            r"^(([a-z])+.)+[A-Z]([a-z])+$",
            r"(?:(?!b)a*)*$",
            r".*.*.*.*.*.*.*x",
            r"(\w+\.?)*!",
            r"(?=(a+)+$)a*b",
        ),
    ],
)
def test_what_makes_re_explode_is_answered_for_names_of_4096_characters(pattern: str) -> None:
    text = "a" * 4095
    assert not begins(pattern, text + "b") or re.match(pattern, "aaab")
    assert not begins(pattern, text + "!") or re.match(pattern, "aaa!")


REFUSED = {
    r"(a)\1": "1, which is not known",
    r"(?P<n>a)(?P=n)": "group of an unknown kind",
    r"(?<=a)b": "group of an unknown kind",
    r"(?<!a)b": "group of an unknown kind",
    r"(?>a)b": "group of an unknown kind",
    r"(?i)a": "group of an unknown kind",
    r"a++": "possessive",
    r"a**": "repeats a repetition",
    r"*a": "nothing to repeat",
    r"(a": r"a \( without",
    r"a)": r"a \) without",
    r"[a": r"a \[ without",
    r"[": r"a \[ without",
    r"[b-a]": "range",
    "a\\": "backslash",
    r"\q": "q, which is not known",
    r"a$b": r"a \$ before",
    r"(?!a(?=b))": "lookahead in a lookahead",
    r"a{3,2}": "below its lowest",
    r"(a{500}){500}": "too large",
    r"((((a{9}){9}){9}){9}){9}": "too large",
    "(" * 500 + ")" * 500: "deep",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_is_not_known_is_refused_with_the_reason(pattern: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[pattern]):
        begins(pattern, "")
    with pytest.raises(ValueError, match=REFUSED[pattern]):
        occurs(pattern, "")


def test_a_pattern_whose_ways_have_no_end_is_given_up_by_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_regex, "_MAX_WORK", 100_000)
    random_ = random.Random(0)  # noqa: S311
    text = "".join(random_.choice("abcd") for _ in range(4096))
    with pytest.raises(InvalidCheckpoint, match=r"'\(\?:\.\|a.*takes too long"):
        LinearRegex("(?:.|a(?=.{20}b)|b(?=.{21}c)|c(?!.{22}a))*z").begins(text)


@pytest.mark.timeout(60)
def test_a_target_that_makes_re_explode_is_answered_in_a_source_s_config() -> None:
    groups = {
        name: {"targets": [target], "weights": {"num_bits": 8}}
        for name, target in (("a", "re:(a+)+$"), ("b", "re:(.*a){25}$"))
    }
    given = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    first, second = read_schemes(ModelConfig("config.json", quantization=given)).of("a" * 4000 + "b")
    assert (first.targets, second.targets) == (("re:(a+)+$",), ("re:(.*a){25}$",))
    groups["a"]["targets"] = [r"re:(a)\1"]
    with pytest.raises(InvalidCheckpoint, match=r"the target 're:\(a\).*is not a valid or supported regex"):
        read_schemes(ModelConfig("config.json", quantization=given))
