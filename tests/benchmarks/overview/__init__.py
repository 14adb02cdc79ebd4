"""Measures this program next to others in one run: rates in turns, with medians and spread; accuracy by stored bytes;
and curves over size, workers and blocks. The result is a table, a picture and a file with all measurements."""
