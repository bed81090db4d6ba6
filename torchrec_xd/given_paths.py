"""Paths as they are given: what has to be local is nowhere else, and no location holds a secret."""

from __future__ import annotations

import re
from pathlib import Path

from torchrec_xd.errors import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
"""Of a location that is no path; pathlib takes one of its two slashes away."""
_SECRETS = (
    # s3://KEY:SECRET@bucket, abfss://:KEY@account; not hdfs://host:8020/a@b, while object stores have no port
    (re.compile(r"((?:s3\w?|gc?s|abfss?|az|adl):/+)[^/@?\s]*:[^@?\s]*@", re.I), r"\1***@"),
    (re.compile(r"(:/+)[^/@?\s]*:(?!\d+/)[^@?\s]*@"), r"\1***@"),
    (
        re.compile(
            r"([?&][\w.-]*(?:secret|token|passw|credential|signature|_key|key(?==)|(?<![a-z])(?:sig|sas)(?![a-z]))"
            r"[\w.-]*=)[^&\s'\"]+",
            re.I,
        ),
        r"\1***",
    ),
)


def local_path(path: str | Path, what: str = "") -> Path:
    """A path on this machine.

    Args:
        path: as it is given.
        what: the option, argument or key that gives it, for the message.

    Raises:
        UserError: it is a location on another file system (`s3://…`).
    """
    if found := _SCHEME.match(str(path)):
        location = masked(f"{found[1]}://{str(path)[found.end() :]}")
        raise UserError(
            f"{what} {location}".lstrip() + ": has to be a path on this machine: of a disk, of NFS, or of a mounted "
            "bucket; stores are for rows alone ('root' and paths of a schema, ROWS and --out of score)"
        )
    return Path(path)


def masked(text: str) -> str:
    """A text without the secrets of locations in it."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def without_secrets(location: str) -> str:
    """A location, unchanged.

    Raises:
        UserError: it holds credentials; the message does not.
    """
    if (shown := masked(location)) != location:
        raise UserError(
            f"{shown}: holds credentials, which would be written into config.yaml and logs; leave them out, and give "
            "them by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, "
            "AZURE_CLIENT_ID …), a profile (AWS_PROFILE) or the machine's role"
        )
    return location
