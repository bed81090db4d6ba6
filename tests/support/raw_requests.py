"""Raw rows of the shop, and what requests hold of them: values, and Python's histories and totals."""

from datetime import timedelta

from tests.support.raw_shop import DAY, START, micros, views

EVENTS = {"shown": {"rows": "views", "user": "user_id", "time": "ts"}}


def rows_of(count, **changes):
    """Rows of goods, no two of one moment, with items and categories that training has not seen."""
    found = views(count, **changes)
    for n, row in enumerate(found):
        row["ts"] = START + timedelta(minutes=20_000 * n // count, seconds=7 + count)
        row["item"] = "new ü" if n % 5 == 0 else row["item"]
        row["category"] = 99 if n % 7 == 0 else row["category"]
    return found


def raw_columns(events, new):
    """What a request holds of the rows: values, and Python's histories and totals."""

    def past(row, days=None, **equal):
        found = [e for e in events if e["ts"] < row["ts"] and all(e[k] == row[k] for k in ("user_id",))]
        found = [e for e in found if all(e[key] == row[key] for key in equal)]
        return [e for e in found if days is None or micros(row["ts"]) - micros(e["ts"]) <= days * DAY]

    def since(row):
        clicked = [e["ts"] for e in past(row) if e["clicked"]]
        return (micros(row["ts"]) - micros(max(clicked))) / DAY if clicked else None

    def share(found):
        return sum(e["clicked"] for e in found) / len(found) if found else None

    def of_item(row):
        return [e for e in events if e["ts"] < row["ts"] and e["item"] == row["item"]]

    same = ("user_id", "item", "category", "price", "tags", "words", "taste")
    columns = {name: [row[name] for row in new] for name in same}
    columns |= {"category_edges": columns["category"], "price_quarter": columns["price"], "hashed": columns["item"]}
    columns |= {"tags_order": columns["tags"], "price_raw": columns["price"]}
    columns["price_steps"] = [None if row["price"] is None else row["price"] * 2 for row in new]
    columns["as_is"] = [row["n"] % 7 for row in new]
    columns["clicked_items"] = [[e["item"] for e in past(row) if e["clicked"]][-4:] for row in new]
    columns["seen"] = [len(past(row, days=2.5)) for row in new]
    columns["spent"] = [sum(e["price"] or 0 for e in past(row)) for row in new]
    columns["since"] = [since(row) for row in new]
    columns["item_share"] = [share(of_item(row)) for row in new]
    columns["seen_step"] = [len(past(row, item=True)) for row in new]
    columns["share_half"] = [share(past(row)) for row in new]
    return columns
