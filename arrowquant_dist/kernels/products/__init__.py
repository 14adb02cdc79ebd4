"""Products of inputs with packed rows, for models whose weights stay codes in memory. They choose no scale or code."""
