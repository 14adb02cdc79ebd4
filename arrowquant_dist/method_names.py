"""The methods of quantization by name, for the command line, whose help imports no numerical code, and for the config,
which lies below them. The methods themselves are in methods/; a test holds that both agree."""

from __future__ import annotations

from typing import Literal, get_args

MethodName = Literal["rtn", "mse", "gptq", "size", "counted"]
_SIDE_INPUTS = {"gptq": "hessians", "counted": "hessians"}
# {name: the config field that says where the method's side input is, None where it needs none}
METHODS: dict[str, str | None] = {name: _SIDE_INPUTS.get(name) for name in get_args(MethodName)}
