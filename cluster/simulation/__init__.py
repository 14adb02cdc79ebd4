"""A run of a large model, simulated: shapes.py the models, rates.py what was measured, work.py what the plan asks of
workers and storage, events.py the run itself."""
