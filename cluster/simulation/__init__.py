"""Simulates a run of a large model: shapes.py has the models, rates.py the rates, work.py what the plan demands
of workers and storage, events.py the run itself."""
