"""Which type, method and step each layer gets, so that a dataset has a given size: what `size` of a config asks for.

One pass over some rows of every layer, before a plan is final; no model is built and nothing is written.
"""

from arrowquant_dist.sizing.run import SizeChoice, choose_size

__all__ = ["SizeChoice", "choose_size"]
