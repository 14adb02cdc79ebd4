"""V2 on disk: rows, their schema, Parquet encoding and compression. README.md is the specification."""
