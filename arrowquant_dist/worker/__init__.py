"""Processes one shard: read → quantize → measure → write → commit → receipt. Plain Python: engines only call `run`."""
