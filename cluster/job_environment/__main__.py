"""The job's driver: `arrowquant` with the variables that were sent along. Workers get them through Ray's hook."""

from job_environment import load

load()
from arrowquant_dist.cli import main  # noqa: E402 variables first: libraries read some of them when they are imported

main()
