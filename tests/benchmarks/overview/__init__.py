"""What this program does beside others, in one run: rates in turns with medians and spread, accuracy by stored bytes,
and curves over size, workers and blocks; as a table, a picture and a file of all that was measured."""
