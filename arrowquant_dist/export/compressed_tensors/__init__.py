"""compressed-tensors: what transformers, vLLM and SGLang load, packed codes beside a `quantization_config`."""
