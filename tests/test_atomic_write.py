"""A file is written whole or keeps what it held."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.errors import OutageError, UserError


def test_the_folder_is_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "file.txt", "Fuß")
    assert (tmp_path / "new" / "file.txt").read_text(encoding="utf-8") == "Fuß"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})

    def fill_the_disk(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(text.encode(encoding)[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(UserError, match=r"cannot be written: .*No space left"):
        write_json(path, {"a": 2})
    assert path.read_bytes() == b'{\n  "a": 1\n}\n'


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ESTALE, errno.EIO, errno.EHOSTDOWN, errno.EHOSTUNREACH])
def test_a_disk_that_does_not_answer_is_an_outage(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Path, to: Path) -> None:
        raise OSError(number, "the disk does not answer")

    monkeypatch.setattr(Path, "replace", gone)
    with pytest.raises(OutageError, match=r"outage: .*file\.json cannot be written: .*the disk does not answer"):
        write_json(tmp_path / "file.json", {})
