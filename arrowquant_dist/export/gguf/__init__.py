"""GGUF, which llama.cpp serves from: blocks, names and figures of an architecture, its tokenizer, the header."""
