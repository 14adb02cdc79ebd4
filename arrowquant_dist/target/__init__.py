"""A dataset in the making: layout, receipts, commits, manifest, index, and the transaction that publishes it."""
