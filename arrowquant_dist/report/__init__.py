"""Reports of what the reducer found: JSON, Markdown, HTML, Parquet and tables for the terminal."""
