"""The methods of quantization by name, for whatever offers them: the command line, whose help imports no numbers, and
the config, which lies below them. The methods themselves are in methods/; a test holds that both agree."""

# {name: the field of the config that says where its side input is, None where it needs none}
METHODS: dict[str, str | None] = {
    "rtn": None,
    "mse": None,
    "gptq": "hessians",
    "size": None,
    "counted": "hessians",
}
