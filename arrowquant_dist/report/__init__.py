"""What the reducer found, for people: json, md, html, parquet, terminal."""
