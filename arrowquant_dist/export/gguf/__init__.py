"""GGUF, which llama.cpp serves from: blocks, an architecture's names and numbers, its tokenizer, the header."""
