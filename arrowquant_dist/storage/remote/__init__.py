"""Objects behind a network, or at least behind fsspec. fsspec is imported only when one is opened.

objects.py: the Store. requests.py: runs and repeats requests. faults.py: which failures may pass, and what they mean.
secrets.py: what errors must not show. client.py: the interface of single requests; s3.py: through s3fs's client;
filesystem.py: through any fsspec file system. upload.py: parts sent while the caller continues.
"""

from arrowquant_dist.storage.remote.objects import RemoteStore

__all__ = ["RemoteStore"]
