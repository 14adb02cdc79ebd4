"""Ways of storing a layer's values, a type and a file each: what it has to know, how it is read and what that takes.

To add one: a file here with a frozen dataclass that answers what `encoding.Encoding` asks, and its line in
`registry.py`. Its fields become a column of the plan's table (`columns.py`); what finds such layers in a
checkpoint is in `checkpoint/quantized/`.
"""
