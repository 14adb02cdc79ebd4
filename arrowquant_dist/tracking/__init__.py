"""Reports runs to a tracking server, where the environment names one."""
