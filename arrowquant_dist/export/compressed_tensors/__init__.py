"""compressed-tensors: what transformers, vLLM and SGLang load, packed codes and a `quantization_config`."""
