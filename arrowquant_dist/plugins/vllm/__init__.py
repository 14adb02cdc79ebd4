"""`load_format="arrowquant"` for vLLM, which calls `register` in each of its processes by the entry point of the group
`vllm.general_plugins`. Where there is no vLLM nobody calls it, and importing this imports nothing."""

from __future__ import annotations

import logging

LOAD_FORMAT = "arrowquant"


def register() -> None:
    """Tells vLLM of the load format. It may be called any number of times.

    vLLM calls it whatever it is going to load, and what is raised here would end it. So a vLLM without the names that
    the loader is written for is told of in its log, and refuses `load_format="arrowquant"` itself.
    """
    try:
        from vllm.model_executor.model_loader import register_model_loader

        from arrowquant_dist.plugins.vllm.loader import ArrowQuantModelLoader
    except ImportError as error:
        log = logging.getLogger(__name__)
        log.warning("load_format=%r is not there: %s; use vLLM 0.32 or a later one", LOAD_FORMAT, error)
        return
    register_model_loader(LOAD_FORMAT)(ArrowQuantModelLoader)
