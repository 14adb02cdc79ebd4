"""Shows people how far something has come: on a terminal, in a notebook, or as lines in a log."""
