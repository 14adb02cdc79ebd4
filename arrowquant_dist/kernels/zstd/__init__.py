"""zstd frames whose blocks are Huffman coded alone, for codes of weights."""
