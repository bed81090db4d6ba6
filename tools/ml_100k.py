"""MovieLens 100k as RecBole's wheel has it: three text files of ratings, films and users.

    python -m tools.ml_100k --out data/ml-100k-raw

pip downloads the wheel from wherever it is set up to; the wheel's checksum is compared. The licence of these data
forbids redistribution: they go into a folder that git ignores, and no further.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from torchrec_xd.atomic_write import write_text
from torchrec_xd.error_boundary import run_command
from torchrec_xd.errors import UserError

WHEEL = "recbole==1.2.1"
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER = "recbole/dataset_example/ml-100k"
FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
LICENCE = """\
MovieLens 100k, GroupLens Research, University of Minnesota: for research; not to be redistributed, nor used for revenue
without the permission of GroupLens. Cite: F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context,
ACM TiiS 5(4), 2015, https://doi.org/10.1145/2827872."""


def download(folder: Path) -> Path:
    """Let pip fetch the wheel into a folder; no dependency of it.

    Raises:
        UserError: pip cannot; its message is part of this one.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("recbole-*.whl"))
    if done.returncode or len(wheels) != 1:
        raise UserError(f"pip cannot download {WHEEL}; see what its index is set to:\n{done.stderr.strip()}")
    return wheels[0]


def extract(wheel: Path, out: Path, sha256: str = SHA256) -> list[Path]:
    """Write the three files of a wheel into `out`.

    Raises:
        UserError: the wheel has another checksum; nothing is written.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise UserError(f"{wheel.name}: SHA-256 is {found}, not {sha256}: it is not the file that was looked at")
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            write_text(out / name, archive.read(f"{FOLDER}/{name}").decode())
    return [out / name for name in FILES]


def main(
    out: Annotated[Path, typer.Option(help="Folder for the three files.")] = Path("data/ml-100k-raw"),
) -> None:
    """Download MovieLens 100k; it must not be redistributed."""
    with tempfile.TemporaryDirectory() as folder:
        for path in extract(download(Path(folder)), out):
            print(path)
    print(LICENCE)


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
