"""Ranges of S3 objects through obstore (Rust) instead of s3fs; all else stays with s3fs, and so do credentials."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from arrowquant_dist.config import Transfer
from arrowquant_dist.errors import InvalidConfig, StorageError
from arrowquant_dist.store.remote.client import ShortAnswer, ends_early
from arrowquant_dist.store.remote.faults import PASSING_STATUS
from arrowquant_dist.store.remote.s3 import S3Client, version_of
from arrowquant_dist.store.traffic import Traffic

_STATUS = re.compile(r"status code: (\d{3})")
_CREDENTIALS_KEPT = timedelta(minutes=5)  # botocore renews them, and is asked this often
_UNKNOWN = {"s3_additional_kwargs", "requester_pays", "session", "cache_regions", "version_aware"}
_UNKNOWN_TO_CLIENT = {"verify", "proxies", "proxies_config", "client_cert"}


class ObstoreClient(S3Client):
    """Takes a range's bytes of memory more for each request in flight: an answer is whole before it is copied."""

    def __init__(
        self, fs: Any, root: str, transfer: Transfer, traffic: Traffic, options: dict[str, Any]
    ) -> None:
        super().__init__(fs, root, transfer, traffic)
        asked = {*options} | {*options.get("client_kwargs", {})} | {*options.get("config_kwargs", {})}
        unknown = sorted(asked & (_UNKNOWN | _UNKNOWN_TO_CLIENT))
        if unknown:
            raise InvalidConfig(
                f"transfer.reader obstore does not know the option {unknown[0]!r}; use reader s3fs"
            )
        self._is_virtual = options["config_kwargs"].get("s3", {}).get("addressing_style") == "virtual"
        self._store: Any = None

    async def read_into(self, path: str, start: int, view: memoryview) -> str | None:
        try:
            return await self._read_fast(path, start, view)
        except Exception as error:
            if isinstance(error, StorageError):
                raise
            if _may_pass(error):
                raise ShortAnswer(str(error).partition("\n")[0]) from None
        await super().read_into(path, start, view)  # says what is wrong, in S3's words
        raise StorageError("obstore cannot read what s3fs can; set transfer.reader to s3fs")

    async def _read_fast(self, path: str, start: int, view: memoryview) -> str:
        import obstore

        if self._store is None:
            self._store = await self._open()
        stop = start + len(view)
        answer = await obstore.get_async(self._store, self.key(path), options={"range": (start, stop)})
        nbytes: int = answer.meta["size"]
        if nbytes < stop:
            raise ends_early(stop, nbytes)
        data = memoryview(await answer.bytes_async())
        self.traffic.add(read_nbytes=len(data))
        if tuple(answer.range) != (start, stop) or len(data) != len(view):
            raise ShortAnswer(f"{len(data)} of {len(view)} bytes came")
        view[:] = data
        return version_of(answer.meta["e_tag"] or "", nbytes)

    async def _open(self) -> Any:
        from obstore.store import S3Store

        client = await self._fs.set_session()
        endpoint = client.meta.endpoint_url
        if self._is_virtual:
            endpoint = endpoint.replace("://", f"://{self.bucket}.", 1)
        return S3Store(
            self.bucket,
            endpoint=endpoint,
            region=client.meta.region_name or "us-east-1",
            virtual_hosted_style_request=self._is_virtual,
            retry_config={"max_retries": 0},
            client_options={
                "allow_http": urlsplit(endpoint).scheme == "http",
                "connect_timeout": timedelta(seconds=self.transfer.connect_timeout),
                "read_timeout": timedelta(seconds=self.transfer.request_timeout),
                "timeout": timedelta(days=1),  # a slow answer that goes on is no failure
            },
            **({"skip_signature": True} if self._fs.anon else {"credential_provider": self._credentials}),
        )

    async def _credentials(self) -> dict[str, Any]:
        """Those that s3fs's client has, wherever they come from."""
        client = await self._fs.set_session()
        found = await client._request_signer._credentials.get_frozen_credentials()
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_KEPT,
        }


def _may_pass(error: BaseException) -> bool:
    """obstore says it in words: a status where there was an answer, else the connection broke."""
    if isinstance(error, ShortAnswer):
        return True
    if type(error).__module__ != "obstore.exceptions":
        return False
    status = _STATUS.search(str(error))
    return type(error).__name__ == "GenericError" and (status is None or int(status[1]) in PASSING_STATUS)
