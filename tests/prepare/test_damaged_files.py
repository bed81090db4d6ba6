"""Files that are damaged are told by name, as far as DuckDB says it."""

from tests.support.raw_shop import prepare, recipe, views, write_shop
from torchrec_xd.errors import UserError


def test_a_damaged_file(tmp_path):
    """DuckDB names some damages by the file, and others by what its reader of pages met."""
    shop = write_shop(tmp_path / "shop", views(2_000))
    whole, damaged = (shop / "views.parquet").read_bytes(), tmp_path / "damaged.parquet"
    messages = []
    for place in range(150, len(whole) // 2, len(whole) // 24):
        content = bytearray(whole)
        for i in range(place, place + 40):
            content[i] ^= 0x5A
        damaged.write_bytes(content)
        try:
            prepare(tmp_path, recipe(shop), inputs={"views": str(damaged)})
        except UserError as error:
            messages.append(str(error))
    named = ("damaged.parquet", "one of views, likes is damaged")
    assert all(any(text in message for text in named) for message in messages)
    assert all(any(text in message for message in messages) for text in named)
