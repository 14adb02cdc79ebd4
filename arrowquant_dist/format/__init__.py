"""V2 on disk: the row, its schema, Parquet's bytes, compression. README.md is the specification."""
