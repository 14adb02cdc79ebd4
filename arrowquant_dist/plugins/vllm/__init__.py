"""`load_format="arrowquant"` for vLLM, which calls `register` in each of its processes through the entry point group
`vllm.general_plugins`. Without vLLM nobody calls it, and importing this module imports nothing else."""

from __future__ import annotations

import logging

LOAD_FORMAT = "arrowquant"


def register() -> None:
    """Registers the load format with vLLM. It may be called any number of times.

    vLLM calls this whatever it is going to load, and an exception raised here would end it. A vLLM without the names
    that the loader needs therefore only gets a warning in its log, and refuses `load_format="arrowquant"` itself.
    """
    try:
        from vllm.model_executor.model_loader import register_model_loader

        from arrowquant_dist.plugins.vllm.loader import ArrowQuantModelLoader
    except ImportError as error:
        log = logging.getLogger(__name__)
        log.warning("load_format=%r is not available: %s; use vLLM 0.32 or later", LOAD_FORMAT, error)
        return
    register_model_loader(LOAD_FORMAT)(ArrowQuantModelLoader)
