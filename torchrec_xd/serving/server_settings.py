"""What a server is told when it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from torchrec_xd.settings import Settings


class ServerSettings(Settings):
    """Options of `torchrec-xd serve`."""

    out: Path
    """Folder with `current.json` and `versions/`."""
    host: str = "127.0.0.1"
    """Address that is listened on."""
    port: int = Field(default=8080, ge=0, lt=65536)
    """0: one that is free."""
    workers: int = Field(default=1, ge=1, le=256)
    """Processes on the one port."""
    threads: int = Field(default=1, ge=1, le=256)
    """Of the net, for one request."""
    canary: PositiveInt | None = None
    """A second version that is served."""
    canary_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the users that it answers."""
    missing: Literal["refuse", "null"] = "refuse"
    """What becomes of a request that lacks a column: `null` reads it as null and counts it."""
    user_features: Path | None = None
    """Parquet file with features of users, for what a request does not say; read again with every version."""
    max_candidates: PositiveInt = 2000
    """Of one request."""
    max_body_mb: float = Field(default=8.0, gt=0, le=1024)
    """Of one request, in MiB."""
    timeout: float = Field(default=2.0, gt=0, le=3600)
    """Seconds for one request."""
    max_concurrent: PositiveInt = 64
    """Requests that a worker has at a time; more are asked to come again."""
    poll: float = Field(default=1.0, gt=0, le=3600)
    """Seconds between looks at `current.json`."""

    @model_validator(mode="after")
    def _check_share(self) -> ServerSettings:
        if self.canary is None and "canary_share" in self.model_fields_set:
            raise ValueError("canary_share belongs to a canary: name its version")
        return self

    @property
    def max_bytes(self) -> int:
        """Bytes of a body at most."""
        return int(self.max_body_mb * 2**20)
