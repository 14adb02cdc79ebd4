"""The checkout that these scripts are in. They use and send its package, whether it is installed or not."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "arrowquant_dist"
sys.path.insert(0, str(ROOT))
