"""A dataset being made: layout, receipts, commits, manifest, index, and the transaction that publishes it."""
