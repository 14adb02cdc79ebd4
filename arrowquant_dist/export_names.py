"""What an export is known by, for those who write one and those who have to tell it from a dataset or a checkpoint."""

MARK_KEY = "arrowquant.export"  # in each file's metadata
RECORD_PATH = "export.json"
RECORD_KIND = "arrowquant-export"  # the `kind` that the record says
# Of a folder for vLLM, without weights: where these are.
SERVED_PATH = "arrowquant.json"
# What makes programs take a folder for a model: written when all weights are there.
MODEL_FILES = ("config.json", "modules.json", "model_index.json")
