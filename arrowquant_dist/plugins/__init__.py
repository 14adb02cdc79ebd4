"""What other programs load by an entry point of theirs. Harmless where the program is absent."""
