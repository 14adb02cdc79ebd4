"""A dataset in the formats that other programs serve from: a file a format, of pure packers, and what runs them."""
