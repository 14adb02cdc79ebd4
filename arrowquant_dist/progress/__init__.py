"""How far something is, drawn for people: on a terminal, in a notebook, as lines in a log."""
