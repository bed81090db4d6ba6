"""A file is written whole or keeps what it held."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrec_xd.atomic_write import write_json, write_text
from torchrec_xd.errors import UserError


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
