"""Which files of a source's folder are its weights, and which are copied. Names and sizes; no tensor is looked at."""
