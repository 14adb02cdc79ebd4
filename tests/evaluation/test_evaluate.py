"""evaluate() on real and tiny models: known answers, references by transformers and sentence-transformers, and
refusals."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    ViTConfig,
)

from arrowquant_dist import Evaluation, QuantizationConfig, evaluate
from arrowquant_dist.errors import (
    CorruptWeights,
    InvalidConfig,
    ModelMismatch,
    NotFound,
    UnquantizableWeights,
)
from arrowquant_dist.evaluation.embeddings import embedding_figures
from arrowquant_dist.models import causal, encoders, tokens
from arrowquant_dist.models.pair import transformers_model
from arrowquant_dist.report.evaluation import EmbeddingFigures, NextTokenFigures
from arrowquant_dist.texts.steps import TextsStep
from tests.evaluation.models import (
    KEPT,
    TEXTS,
    VOCABULARY,
    quantize,
    save,
    save_bert,
    save_llama,
    save_masked_bert,
    save_sentence_model,
)
from tests.models.served import Served, write_decoded
from tests.servers.fixtures import Bucket

INT8, INT2 = QuantizationConfig("int8"), QuantizationConfig("int2", symmetric=False)


def served(source: Path, config: QuantizationConfig) -> Served:
    found = Served(source, source.parent / "target", source.parent / "decoded")
    quantize(source, found.target, config)
    write_decoded(found)
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(save_llama(tmp_path_factory.mktemp("llama") / "source"), INT2)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served(save_bert(tmp_path_factory.mktemp("bert") / "source"), INT2)


def embeddings_of(found: Evaluation) -> EmbeddingFigures:
    assert found.embeddings is not None
    return found.embeddings


def next_tokens_of(found: Evaluation) -> NextTokenFigures:
    assert found.next_tokens is not None
    return found.next_tokens


def one_by_one(folder: Path, texts: Any) -> list[tuple[np.ndarray, list[int]]]:
    """float64 log-probabilities [positions, vocabulary] and the next tokens, by transformers, a text at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].numpy().astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        found.append((logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), ids[0, 1:].tolist()))
    return found


def test_next_tokens_are_those_that_transformers_gives_text_by_text(llama: Served) -> None:
    own = evaluate(llama.source, llama.target, [*TEXTS])
    found = next_tokens_of(own)
    nll_p, nll_q, kl, same = [], [], [], []
    for (p, chosen), (q, _) in zip(
        one_by_one(llama.source, TEXTS), one_by_one(llama.decoded, TEXTS), strict=True
    ):
        rows = np.arange(len(chosen))
        nll_p += [*-p[rows, chosen]]
        nll_q += [*-q[rows, chosen]]
        kl += [*(np.exp(p) * (p - q)).sum(axis=1)]
        same += [*(p.argmax(1) == q.argmax(1))]
    assert found.positions == len(kl) == sum(len(chosen) for _, chosen in one_by_one(llama.source, TEXTS))
    assert found.perplexity_original == pytest.approx(np.exp(np.mean(nll_p)), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(np.mean(nll_q)), rel=1e-5)
    assert found.excess == pytest.approx(np.exp(np.mean(nll_q) - np.mean(nll_p)) - 1, rel=1e-4)
    assert found.kl_mean == pytest.approx(np.mean(kl), rel=1e-4)
    assert found.top1_agreement == pytest.approx(np.mean(same), abs=1.5 / len(same))
    assert found.kl_mean > 0.01
    assert found.top1_agreement < 0.95
    assert own.kind == "causal"
    assert own.architecture == "LlamaForCausalLM"
    assert (own.texts.texts, own.texts.tokens, own.texts.cut) == (len(TEXTS), found.positions + len(TEXTS), 0)


def mean_pooled(folder: Path, texts: Any) -> np.ndarray:
    """By transformers, a text at a time, without padding."""
    model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return np.stack(
            [
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
                for text in texts
            ]
        )


def assert_close(found: EmbeddingFigures, expected: EmbeddingFigures) -> None:
    for name in ("cosine_mean", "cosine_p5", "cosine_min", "rank_correlation"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=2e-5), name
    assert found.recall_at_10 == pytest.approx(expected.recall_at_10, abs=0.02)
    assert (found.dimensions, found.pairs) == (expected.dimensions, expected.pairs)


def test_an_encoder_is_pooled_by_the_mean_over_its_tokens(bert: Served) -> None:
    own = evaluate(bert.source, bert.target, [*TEXTS])
    expected = embedding_figures(mean_pooled(bert.source, TEXTS), mean_pooled(bert.decoded, TEXTS))
    assert_close(embeddings_of(own), expected)
    assert expected.cosine_mean < 0.99
    assert own.kind == "encoder"
    assert own.pooling == "the mean over the tokens of the attention mask"


@pytest.mark.parametrize("mode", ["cls", "max"])
def test_a_model_of_sentence_transformers_is_pooled_as_it_pools_itself(tmp_path: Path, mode: str) -> None:
    source = save_sentence_model(tmp_path / "source", mode)
    target = quantize(source, tmp_path / "target", INT2)
    decoded = SentenceTransformer(str(source), device="cpu")
    from arrowquant_dist import load_sentence_transformer

    expected = embedding_figures(decoded.encode([*TEXTS]), load_sentence_transformer(target).encode([*TEXTS]))
    own = evaluate(source, target, [*TEXTS])
    assert_close(embeddings_of(own), expected)
    assert expected.dimensions == 24
    assert (own.kind, own.pooling) == ("sentence-transformers", "its own, by sentence-transformers")


@pytest.mark.parametrize("save", [save_llama, save_bert, save_masked_bert, save_sentence_model])
def test_a_dataset_that_keeps_everything_is_the_original(tmp_path: Path, save: Any) -> None:
    source = save(tmp_path / "source")
    found = evaluate(source, quantize(source, tmp_path / "target", KEPT), [*TEXTS])
    if found.embeddings is not None:
        own = found.embeddings
        assert (own.cosine_mean, own.cosine_p5, own.cosine_min) == (1.0, 1.0, 1.0)
        assert (own.rank_correlation, own.recall_at_10) == (1.0, 1.0)
    else:
        tokens = next_tokens_of(found)
        assert (tokens.excess, tokens.kl_mean, tokens.top1_agreement) == (0.0, 0.0, 1.0)


def test_the_head_of_pre_training_counts_nowhere(tmp_path: Path) -> None:
    """A checkpoint with a head that its config does not name, as BERT's own is."""
    source = save_masked_bert(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    found = evaluate(source, quantize(source, tmp_path / "target"), [*TEXTS])
    assert embeddings_of(found).cosine_min == 1.0
    assert any("no place for" in note and "cls.predictions" in note for note in found.notes)


def test_a_pooler_that_the_checkpoint_lacks_is_not_missed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = BertModel(BertConfig(vocab_size=VOCABULARY, **sizes), add_pooling_layer=False)
    source = save(model, tmp_path / "source")
    found = evaluate(source, quantize(source, tmp_path / "target"), [*TEXTS])
    assert embeddings_of(found).cosine_min == 1.0


def test_a_roberta_is_as_transformers_has_it_up_to_its_last_position(tmp_path: Path) -> None:
    """Its positions begin behind the padding's, and are counted by its padding."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = RobertaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=34, pad_token_id=0, initializer_range=0.3, **sizes
    )
    source = save(RobertaModel(config), tmp_path / "source")
    own = served(source, INT2)
    texts = [*TEXTS, " ".join(TEXTS)]
    found = evaluate(source, own.target, texts)
    assert found.texts.longest == 33
    tokenizer = AutoTokenizer.from_pretrained(source)

    def pooled(folder: Path) -> np.ndarray:
        model, rows = RobertaModel.from_pretrained(folder).eval(), []
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=33, return_tensors="pt")
            with torch.no_grad():
                hidden = model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
            rows.append(hidden[0].mean(0).numpy())
        return np.stack(rows)

    assert_close(embeddings_of(found), embedding_figures(pooled(source), pooled(own.decoded)))


def test_one_encoder_is_gone_before_the_next_one_is_read(
    bert: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[weakref.ref[Any]] = []

    def watched(*arguments: Any) -> tuple[Any, tuple[str, ...]]:
        assert [ref for ref in there if ref() is not None] == []
        model, left_over = transformers_model(*arguments)
        there.append(weakref.ref(model))
        return model, left_over

    monkeypatch.setattr(encoders, "transformers_model", watched)
    evaluate(bert.source, bert.target, [*TEXTS])
    assert len(there) == 2


def test_more_bits_are_nearer(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "source")
    every = [
        evaluate(source, quantize(source, tmp_path / bits, QuantizationConfig(bits)), [*TEXTS])
        for bits in ("int8", "int4", "int2")
    ]
    assert not any(each.notes for each in every)
    found = [next_tokens_of(each) for each in every]
    divergences = [each.kl_mean for each in found]
    assert divergences == sorted(divergences)
    assert divergences[0] < 0.01 * divergences[2]
    agreements = [each.top1_agreement for each in found]
    assert agreements == sorted(agreements, reverse=True)


def test_rows_in_another_order_are_seen(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = save_bert(tmp_path / "source")
    other = Path(shutil.copytree(source, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    name = "encoder.layer.0.attention.output.dense.weight"
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    evaluation = evaluate(source, quantize(other, tmp_path / "target"), [*TEXTS])
    found = embeddings_of(evaluation)
    assert found.cosine_mean < 0.9
    assert found.recall_at_10 is not None
    assert found.recall_at_10 < 0.9
    said = f"the dataset was not made from these weights (other values in {name})"
    assert evaluation.notes[0].startswith(said)


def test_the_size_of_batches_changes_nothing_but_rounding(
    llama: Served, bert: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [evaluate(each.source, each.target, [*TEXTS]) for each in (llama, bert)]
    monkeypatch.setattr(tokens.batches, "__defaults__", (1,))
    monkeypatch.setattr(causal, "BATCH_TOKENS", 1)
    single = [evaluate(each.source, each.target, [*TEXTS]) for each in (llama, bert)]
    assert_close(embeddings_of(single[1]), embeddings_of(whole[1]))
    one, other = next_tokens_of(single[0]), next_tokens_of(whole[0])
    assert one.kl_mean == pytest.approx(other.kl_mean, rel=1e-4)
    assert one.perplexity == pytest.approx(other.perplexity, rel=1e-5)


def test_the_same_again_is_the_same_to_the_last_bit(llama: Served) -> None:
    first, second = (evaluate(llama.source, llama.target, [*TEXTS]) for _ in range(2))
    assert first.figures == second.figures


def test_long_texts_are_cut_and_counted(llama: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "MOST_TOKENS", 16)
    found = evaluate(llama.source, llama.target, ["a", " ".join(TEXTS)])
    assert (found.texts.cut, found.texts.longest) == (1, 16)
    assert found.texts.tokens == 16 + 3
    assert found.notes == ("texts that were cut to 16 tokens: 1 of 2",)


def test_texts_that_have_no_next_token_are_counted_or_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)).save_pretrained(source)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(source)  # noqa: S106
    target = quantize(source, tmp_path / "target", INT8)
    found = evaluate(source, target, ["a", "a b", "b a b"])
    assert next_tokens_of(found).positions == 3
    assert found.notes == ("texts of a single token, which has no next one: 1 of 3",)
    with pytest.raises(InvalidConfig, match="no text has two tokens"):
        evaluate(source, target, ["a", "b"])


def test_what_too_few_texts_do_not_tell_is_noted(bert: Served) -> None:
    found = evaluate(bert.source, bert.target, ["a text", "another"])
    own = embeddings_of(found)
    assert own.rank_correlation is None
    assert own.recall_at_10 is None
    assert found.notes == (
        "recall@10 needs more than 10 texts, but there are 2",
        "the correlation of similarities needs three texts, but there are 2",
    )


@pytest.mark.slow
def test_minilm_at_eight_four_and_two_bits(minilm: Path, tmp_path: Path) -> None:
    """On texts that nobody chose a setting by. shared tables have .9993, .957 and .53 on news."""
    groups: dict[str, Any] = {"per_channel": False, "group_size": 128, "symmetric": False, "method": "mse"}
    configs = {
        "int8": INT8,
        "int4": QuantizationConfig("int4", **groups),
        "int2": QuantizationConfig("int2", **groups),
    }
    means = [
        embeddings_of(evaluate("minilm", quantize(minilm, tmp_path / name, config), [*TEXTS])).cosine_mean
        for name, config in configs.items()
    ]
    assert means == pytest.approx([0.9995, 0.96, 0.56], abs=0.01)
    assert means[0] > 0.999


def test_model_texts_and_target_come_from_an_object_store(bucket: Bucket, bert: Served) -> None:
    for folder in (bert.source, bert.target):
        bucket.objects.upload_folder(folder, f"{bucket.uri}/{folder.name}")
    bucket.objects.put(f"{bucket.uri}/texts.txt", "\n".join(TEXTS).encode())
    found = evaluate(
        f"{bucket.uri}/source",
        f"{bucket.uri}/target",
        f"{bucket.uri}/texts.txt",
        storage_options=bucket.storage_options,
    )
    assert found.figures == evaluate(bert.source, bert.target, [*TEXTS]).figures
    written = json.loads(bucket.objects.get(f"{bucket.uri}/target/report/evaluation.json"))
    assert written["evaluations"][-1] == found.to_dict()
    assert found.model == f"{bucket.uri}/source"


def test_progress_tells_of_each_step_from_nothing_to_all(bert: Served, llama: Served) -> None:
    for each, names in (
        (
            bert,
            [
                "reading the original",
                "embedding with the original",
                "reading the dataset",
                "embedding with the dataset",
            ],
        ),
        (llama, ["reading the original", "reading the dataset", "comparing next tokens"]),
    ):
        steps: list[TextsStep] = []
        evaluate(each.source, each.target, [*TEXTS], progress=steps.append)
        assert [*dict.fromkeys(step.name for step in steps)] == names
        for name in names:
            own = [step for step in steps if step.name == name]
            assert [step.done for step in own] == sorted(step.done for step in own)
            assert own[-1].done == own[-1].total > 0
            assert {step.unit for step in own} == {"bytes" if name.startswith("reading") else "texts"}


# What is refused; then nothing is written.


def assert_refused(
    error: type[Exception], said: str | None, model: Any, target: Path, texts: Any = TEXTS
) -> None:
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with pytest.raises(error, match=said):
        evaluate(model, target, [*texts] if isinstance(texts, tuple) else texts)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_a_dataset_of_another_model_is_refused(bert: Served, llama: Served, tmp_path: Path) -> None:
    assert_refused(ModelMismatch, "it was not made from .*; not in the dataset: ", llama.source, bert.target)
    wider = save_bert(tmp_path / "wider", intermediate_size=64)
    assert_refused(ModelMismatch, r"has shape \[48\] but \[64\] in the model", wider, bert.target)


def changed_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (
            "config.json",
            {"num_attention_heads": 2},
            r"its config.json is not the model's \(in num_attention_heads\)",
        ),
        (
            "tokenizer_config.json",
            {"model_max_length": 64},
            r"its tokenizer_config.json is not the model's \(in mode",
        ),
    ],
)
def test_another_config_or_tokenizer_is_refused(
    bert: Served, tmp_path: Path, name: str, values: dict[str, Any], said: str
) -> None:
    other = Path(shutil.copytree(bert.source, tmp_path / "other"))
    changed_json(other / name, **values)
    assert_refused(InvalidConfig, said, other, bert.target)


def test_words_that_decide_nothing_may_differ(bert: Served, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bert.source, tmp_path / "other"))
    changed_json(other / "config.json", transformers_version="4.0.0", dtype="bfloat16")
    (other / "README.md").write_text("another")
    assert (
        evaluate(other, bert.target, [*TEXTS]).figures == evaluate(bert.source, bert.target, [*TEXTS]).figures
    )


def test_a_vocabulary_of_other_words_is_refused(bert: Served, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bert.source, tmp_path / "other"))
    path = other / "tokenizer.json"
    values = json.loads(path.read_text())
    words = values["model"]["vocab"]
    words["xthe"] = words.pop("the")
    path.write_text(json.dumps(values))
    assert_refused(InvalidConfig, r"its tokenizer.json is not the model's \(in model\)", other, bert.target)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            BartConfig(architectures=["BartForConditionalGeneration"]),
            "BartForCond.* is neither a text encoder nor",
        ),
        (
            ViTConfig(architectures=["ViTModel"]),
            "ViTModel is neither a text encoder nor a causal language model",
        ),
        (T5Config(architectures=["T5Model"]), "T5Model is neither"),
        (BertConfig(architectures=["NoSuchModel"]), "transformers has no NoSuchModel"),
        (BertConfig(), "its config.json names no architecture"),
        (
            BertConfig(architectures=["BertModel", "BertForMaskedLM"]),
            "its config.json names BertModel, BertForMaskedLM",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.architectures),
)
def test_other_kinds_of_models_are_refused(bert: Served, tmp_path: Path, config: Any, said: str) -> None:
    other = Path(shutil.copytree(bert.source, tmp_path / "other"))
    config.save_pretrained(other)
    assert_refused(InvalidConfig, said, other, bert.target)


def test_a_model_that_sees_the_next_token_is_not_asked_for_it(tmp_path: Path) -> None:
    for is_decoder in (False, True):
        source = save_bert(tmp_path / f"{is_decoder}", BertLMHeadModel, is_decoder=is_decoder)
        target = quantize(source, tmp_path / f"{is_decoder}-target")
        if is_decoder:
            assert next_tokens_of(evaluate(source, target, [*TEXTS])).kl_mean == 0.0
        else:
            assert_refused(InvalidConfig, "BertLMHeadModel sees later tokens", source, target)


def test_a_model_without_a_config_or_a_tokenizer_is_refused(bert: Served, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bert.source, tmp_path / "other"))
    (other / "tokenizer.json").unlink()
    assert_refused(InvalidConfig, r"there is no tokenizer \(no tokenizer.json", other, bert.target)
    (other / "config.json").unlink()
    assert_refused(InvalidConfig, "there is no config.json", other, bert.target)


def test_a_tokenizer_with_more_words_than_the_model_has_is_refused(tmp_path: Path) -> None:
    source = save_bert(tmp_path / "source", vocab_size=400)
    assert_refused(
        InvalidConfig, "but the model has embeddings for 400", source, quantize(source, tmp_path / "target")
    )


def test_a_target_that_is_no_finished_dataset_is_refused(bert: Served, tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(bert.target, tmp_path / "unfinished"))
    (unfinished / "manifest.json").unlink()
    assert_refused(NotFound, "no finished dataset is there", bert.source, unfinished)
    with pytest.raises(NotFound, match="no finished dataset is there"):
        evaluate(bert.source, tmp_path / "nothing", [*TEXTS])


def test_a_flipped_bit_of_the_dataset_is_found(bert: Served, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bert.target, tmp_path / "damaged"))
    part = max(damaged.rglob("part-*"), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert_refused(CorruptWeights, None, bert.source, damaged)


def test_texts_are_looked_at_before_any_weight(bert: Served, tmp_path: Path) -> None:
    assert_refused(
        NotFound, "no such file of texts", tmp_path / "no model", bert.target, tmp_path / "none.txt"
    )


def test_outputs_that_are_not_finite_are_an_error_and_no_figure(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = save_bert(tmp_path / "source")
    other = Path(shutil.copytree(source, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.bias"][0] = math.nan
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    target = quantize(other, tmp_path / "target")
    assert_refused(
        UnquantizableWeights, "the dataset makes embeddings that are not finite for 25 of 25", source, target
    )
