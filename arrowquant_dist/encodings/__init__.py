"""Ways of storing a layer's values, one type and file each: its fields, how values are read, what memory it takes.

To add one, write a file here with a frozen dataclass that implements `encoding.Encoding`, and add a line to
`registry.py`. Its fields become a column of the plan's table (`columns.py`). The code that finds such layers in a
checkpoint is in `checkpoint/quantized/`.
"""
