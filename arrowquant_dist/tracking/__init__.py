"""Runs of ours as runs of a tracking server, where the environment names one."""
