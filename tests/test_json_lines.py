"""Files that grow line by line: half a line at the end is dropped, any other damage is named."""

import pytest

from torchrec_xd.errors import UserError
from torchrec_xd.json_lines import drop_unfinished_line, read_json_lines

WHOLE = b'{"a": 1}\n{"a": 2}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines.jsonl"


@pytest.mark.parametrize(("rest", "dropped"), [(b"", ""), (b'{"a": 3', '{"a": 3'), (b'{"b": "\xc3', '{"b": "�')])
def test_an_unfinished_line_is_dropped_and_the_others_are_read(path, rest, dropped):
    path.write_bytes(WHOLE + rest)
    assert read_json_lines(path) == ([{"a": 1}, {"a": 2}], dropped)
    assert path.read_bytes() == WHOLE + rest
    assert drop_unfinished_line(path) == dropped
    assert path.read_bytes() == WHOLE


def test_a_file_of_an_unfinished_line_alone_becomes_empty(path):
    path.write_bytes(b'{"a"')
    assert drop_unfinished_line(path) == '{"a"'
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b'{"a": ', b"", b"7", b"\xff\xfe", b"[" * 5000])
def test_a_damaged_line_in_the_middle_is_named(path, line):
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n{"a"')
    content = path.read_bytes()
    with pytest.raises(UserError, match=r"lines.jsonl:2: no JSON object but .*: the file is damaged; restore it"):
        drop_unfinished_line(path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_json_lines(tmp_path)
