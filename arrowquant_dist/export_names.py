"""Names by which exports are recognized: for code that writes them or tells them from datasets and checkpoints."""

MARK_KEY = "arrowquant.export"  # key in each file's metadata
RECORD_PATH = "export.json"
RECORD_KIND = "arrowquant-export"  # the record's `kind`
# In a folder for vLLM, which has no weights: says where the weights are.
SERVED_PATH = "arrowquant.json"
# Files by which programs recognize a folder as a model: written once all weights are there.
MODEL_FILES = ("config.json", "modules.json", "model_index.json")
