"""What `submit.py --env` sends along: environment variables that each of the job's processes sets when it starts.

Ray's own `env_vars` would show the values in the job's details, in the dashboard and in the arguments of starting
processes. Here they are sent as a file next to this one, in a package of their own. `load` is the job's
`worker_process_setup_hook`; Ray runs that only for workers, so the driver is started by this package's __main__.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

VALUES = "values.json"


def load() -> None:
    """Sets the variables, and makes their file unreadable for other users of the node."""
    path = Path(__file__).with_name(VALUES)
    with suppress(OSError):
        path.chmod(0o600)
    os.environ.update(json.loads(path.read_text())["variables"])
