"""Parquet files of V2 rows: written front to back, and checked before they are read."""
