"""Objects behind a network, or at least behind fsspec. Only opening one imports fsspec.

objects.py: the Store. requests.py: how requests run and are repeated. faults.py: which failures may pass, and what they
mean. secrets.py: what errors never say. client.py: the requests themselves; s3.py: through s3fs's client;
filesystem.py: through any fsspec file system. upload.py: parts sent while the caller goes on.
"""

from arrowquant_dist.storage.remote.objects import RemoteStore

__all__ = ["RemoteStore"]
