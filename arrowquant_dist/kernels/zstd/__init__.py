"""zstd frames whose blocks are only Huffman coded, for codes of weights."""
