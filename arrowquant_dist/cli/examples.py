"""Two examples of each command, shown at the end of its --help. They use `minilm`, so that anybody can run them."""

from __future__ import annotations

EXAMPLES = {
    "quantize": (
        "arrowquant quantize minilm out/int8",
        "arrowquant quantize minilm out/int4 --config int4 --dry-run",
    ),
    "inspect": (
        "arrowquant inspect minilm",
        "arrowquant inspect out/int8 --filter '*.query.*' --sort stored --limit 5",
    ),
    "verify": (
        "arrowquant verify out/int8",
        "arrowquant verify out/int8 --quiet --json",
    ),
    "report": (
        "arrowquant report out/int8",
        "arrowquant report out/int8 --html report.html",
    ),
    "calibrate": (
        "arrowquant calibrate minilm out/statistics --texts builtin",
        "arrowquant calibrate minilm out/int4-statistics --texts builtin \\\n      --quantize int4-gptq",
    ),
    "evaluate": (
        "arrowquant evaluate minilm out/int8 --texts builtin:held-back",
        "arrowquant evaluate minilm out/int8 --texts builtin --json",
    ),
    "distill": (
        "arrowquant distill minilm out/int8 out/trained --texts builtin --steps 20",
        "arrowquant distill minilm out/int8 out/quick --texts builtin --minutes 0.5",
    ),
    "validate": (
        "arrowquant validate minilm out/validation",
        "arrowquant validate minilm out/of-int8 --configs int8 int4 --html page.html",
    ),
    "export": (
        "arrowquant export out/int8 out/safetensors --format safetensors",
        "arrowquant export out/int8 out/tensors --format compressed-tensors \\\n      --requantize --dry-run",
    ),
    "vllm": (
        "arrowquant vllm out/int8 out/served --decoded",
        "arrowquant vllm out/int8 out/served-too --decoded --json",
    ),
    "config": (
        "arrowquant config show int4",
        "arrowquant config check int4 --json",
    ),
}


def epilog(command: str, exit_codes: str) -> str:
    """The end of a command's --help. \\b: keeps the line breaks as they are."""
    lines = "\n".join(f"  {example}" for example in EXAMPLES[command])
    return f"\b\nExamples:\n{lines}\n\n{exit_codes}"
