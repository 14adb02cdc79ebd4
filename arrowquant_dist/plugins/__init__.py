"""Plugins that other programs load through their entry points. Harmless if the program is not installed."""
