"""What transformers prints while it loads a checkpoint is hidden while ours is loaded, and only then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoModel, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.core_model_loading import MergeModulelist
from transformers.utils import logging as theirs

from arrowquant_dist import load_model
from arrowquant_dist.errors import ModelMismatch
from arrowquant_dist.models.quiet import ReportFilter, without_account
from tests.models.served import Served, serve

BAR = "Loading weights"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=3,
    )
    return serve(MixtralForCausalLM(config), tmp_path_factory.mktemp("mixtral"))


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers logs, from warnings on."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.mark.parametrize("options", [{}, {"codes": True}])
def test_a_model_that_is_loaded_shows_nothing(
    served: Served, capfd: pytest.CaptureFixture[str], said: list[str], options: dict[str, Any]
) -> None:
    AutoModelForCausalLM.from_pretrained(served.decoded)
    assert BAR in capfd.readouterr().err  # which it would show
    load_model(served.target, AutoModelForCausalLM, **options)
    assert capfd.readouterr() == ("", "")
    assert said == []


def test_what_may_be_random_or_left_out_is_no_alarm(
    served: Served, capfd: pytest.CaptureFixture[str], said: list[str]
) -> None:
    load_model(served.target, AutoModel, leave_out=["lm_head"])
    load_model(served.target, AutoModelForCausalLM, leave_out=["lm_head"], initialize=["lm_head"])
    assert capfd.readouterr() == ("", "")
    assert said == []


def test_a_refusal_is_one_error_and_no_table_before_it(
    served: Served, capfd: pytest.CaptureFixture[str], said: list[str]
) -> None:
    with pytest.raises(ModelMismatch, match=r"not in the model: lm_head\.weight"):
        load_model(served.target, AutoModel)
    assert capfd.readouterr() == ("", "")
    assert said == []


def test_a_conversion_that_fails_says_why_without_the_table(
    served: Served, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def convert(*_: Any, **__: Any) -> None:
        raise TypeError("experts of two sizes")

    monkeypatch.setattr(MergeModulelist, "convert", convert)
    with pytest.raises(
        ModelMismatch, match=r"\(experts of two sizes, in MergeModulelist on tensors destined"
    ):
        load_model(served.target, AutoModelForCausalLM)
    assert said == []


def hooked() -> Any:
    """The hook that is there."""
    found = theirs.set_tqdm_hook(None)
    theirs.set_tqdm_hook(found)
    return found


@pytest.mark.parametrize("is_on", [True, False])
def test_what_was_set_before_is_set_afterwards(served: Served, is_on: bool) -> None:  # noqa: FBT001
    (theirs.enable_progress_bar if is_on else theirs.disable_progress_bar)()
    before = lambda make, args, options: make(*args, **options)  # noqa: E731
    filters = [*logging.getLogger("transformers.modeling_utils").filters]
    theirs.set_tqdm_hook(before)
    try:
        load_model(served.target, AutoModelForCausalLM)
        with pytest.raises(ModelMismatch):
            load_model(served.target, AutoModel)
        assert hooked() is before
        assert theirs.is_progress_bar_enabled() is is_on
        assert logging.getLogger("transformers.modeling_utils").filters == filters
    finally:
        theirs.set_tqdm_hook(None)
        theirs.enable_progress_bar()


def test_other_threads_keep_their_bars_and_tables_meanwhile(
    capfd: pytest.CaptureFixture[str], said: list[str]
) -> None:
    """Two threads build, one longer than the other; the test's own does not."""
    one_is_in, both_are_in, one_may_end, both_may_end = (threading.Event() for _ in range(4))
    logger = logging.getLogger("transformers.modeling_utils")

    def build(is_in: threading.Event, may_end: threading.Event) -> None:
        with without_account(ReportFilter()):
            is_in.set()
            assert may_end.wait(60)
            [*theirs.tqdm([1], desc="of a thread that builds")]
            logger.warning("a LOAD REPORT of a thread that builds")
            logger.warning("another warning")

    def show(name: str) -> None:
        [*theirs.tqdm([1], desc=name)]
        logger.warning("LOAD REPORT of %s", name)

    threads = [
        threading.Thread(target=build, args=pair)
        for pair in ((one_is_in, one_may_end), (both_are_in, both_may_end))
    ]
    for thread in threads:
        thread.start()
    assert one_is_in.wait(60)
    assert both_are_in.wait(60)
    show("both")
    one_may_end.set()
    threads[0].join()
    show("the longer one")
    both_may_end.set()
    threads[1].join()
    assert hooked() is None
    shown = capfd.readouterr().err
    assert "both: 100%" in shown
    assert "the longer one: 100%" in shown
    assert "that builds" not in shown
    assert said == [
        "LOAD REPORT of both",
        "another warning",
        "LOAD REPORT of the longer one",
        "another warning",
    ]


def test_a_hook_that_is_set_meanwhile_stays() -> None:
    def other(make: Any, args: Any, options: Any) -> Any:
        return before(make, args, options)

    with without_account(ReportFilter()):
        before = theirs.set_tqdm_hook(other)
    try:
        with without_account(ReportFilter()):
            assert [*theirs.tqdm([1, 2])] == [1, 2]
        assert hooked() is other
        assert [*theirs.tqdm([1, 2])] == [1, 2]
    finally:
        theirs.set_tqdm_hook(None)


def test_it_may_be_entered_twice() -> None:
    with without_account(ReportFilter()):
        with without_account(ReportFilter()):
            pass
        assert hooked() is not None
    assert hooked() is None


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("budget", ["2GiB", "64KiB"])
def test_progress_ends_at_all_bytes_of_the_model(served: Served, codes: bool, budget: str) -> None:  # noqa: FBT001
    """Whatever the budget."""
    calls: list[tuple[int, int, str]] = []
    model = load_model(
        served.target,
        AutoModelForCausalLM,
        codes=codes,
        memory_budget=budget,
        progress=lambda *call: calls.append(call),
    )
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert {call[1] for call in calls} == {done[-1]}
    assert {call[2] for call in calls} == {
        f"model.layers.{block}.{name}.weight" for block in range(2) for name in LAYERS
    } | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    if not codes:
        assert done[-1] == sum(tensor.nbytes for tensor in model.parameters())


LAYERS = (
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    "block_sparse_moe.gate",
    *(f"block_sparse_moe.experts.{expert}.w{part}" for expert in range(3) for part in (1, 2, 3)),
)


def test_codes_count_as_stored(served: Served) -> None:
    """Mixtral's attention, embeddings and head: a byte a code and four a scale, a scale a row."""
    calls: list[tuple[int, int, str]] = []
    options: Any = {"codes": True, "progress": lambda *call: calls.append(call)}
    model = load_model(served.target, AutoModelForCausalLM, **options)
    decoded = sum(tensor.nbytes for tensor in model.parameters())
    rows = 2 * 96 + 2 * (32 + 16 + 16 + 32)
    assert calls[-1][1] == decoded + rows * (32 + 4)


def test_progress_that_raises_ends_the_load(served: Served) -> None:
    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        load_model(served.target, AutoModelForCausalLM, progress=stop)
    assert threading.active_count() == before
