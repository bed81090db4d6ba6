"""The recipe in docs/own_data.md says nothing that recipes cannot say."""

import re
from pathlib import Path

from torchrec_xd.prepare.recipe_checks import check_recipe
from torchrec_xd.prepare.recipe_file import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"


def test_the_recipe_of_the_documents_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(name: shop.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "shop.yaml").write_text(text, encoding="utf-8")
    file = load_recipe(tmp_path / "shop.yaml")
    check_recipe(file)
    assert len(file.recipe.features) == 9
