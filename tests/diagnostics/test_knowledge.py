"""What is watched inside MKT, against its parts called directly."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.mkt_settings import MEM, TEM
from tests.support.small_models import EMBEDDINGS, settings_of
from tests.support.unsharded import materialise
from torchrec_xd.data.loader import Loader, LoaderSettings
from torchrec_xd.diagnostics.knowledge import (
    FeatureScores,
    GateOpenness,
    KnowledgeCosines,
    logged_cosines,
    noise_against_others,
)
from torchrec_xd.errors import UserError
from torchrec_xd.models import MODELS
from torchrec_xd.models.transfer import SourceRun
from torchrec_xd.training import diagnosis


def mem(schema):
    torch.manual_seed(0)
    return materialise(MODELS["mkt_pretrain"].build(schema, settings_of(**MEM), EMBEDDINGS, 0)).eval()


def test_knowledge_cosines_are_those_of_the_parts(schema, batches):
    task, cosines = mem(schema), {domain: [] for domain in schema.domains}
    with torch.no_grad():
        for batch in batches:
            lookups = task.embeddings(batch)
            vectors, common = task.net.common(lookups)
            rows = torch.cat(list(vectors.values()), dim=1)
            for domain, own in lookups.rows.items():
                independent = task.net.independent[domain](
                    torch.cat([rows[own], lookups.specific[domain].flatten(1)], dim=1)
                )
                cosines[domain].append(functional.cosine_similarity(common[domain], independent, dim=1))
    curves = {"items": [], "video": [], "post": [{"step": step, "cosine": 0.75 / step} for step in (2, 4)]}
    found = KnowledgeCosines(task.net, curves)
    diagnosis.measure(task, [found], batches)
    values = found.values()
    for domain, parts in cosines.items():
        said, cosine = values["domains"][domain], torch.cat(parts)
        assert said["count"] == len(cosine) == sum(said["histogram"])
        assert said["mean"] == pytest.approx(cosine.mean().item(), abs=1e-5)
        assert said["std"] == pytest.approx(cosine.std(correction=0).item(), abs=1e-5)
    assert values["over_time"] == curves
    (figure,) = [part for part in found.parts(values)[3:] if not isinstance(part, str)]
    assert {line.name: line.y for line in figure.data}["post"] == (0.375, 0.1875)


def test_feature_scores_are_hfas_own(schema, batches):
    task = mem(schema)
    with torch.no_grad():
        scores = torch.cat(
            [task.net.common.hfa["post"].importances(task.embeddings(batch).specific["post"]) for batch in batches]
        )
    found = FeatureScores([(task.net, task.embeddings.read)], frozenset({"words"}))
    diagnosis.measure(task, [found], batches)
    said = found.values()["domains"]
    assert list(said) == ["items", "video", "post"]
    by_name = {feature["feature"]: feature for feature in said["post"]["features"]}
    for n, column in enumerate(("style", "words", "topic")):
        assert by_name[column]["mean"] == pytest.approx(scores[:, n].mean().item(), abs=1e-5)
        assert by_name[column]["std"] == pytest.approx(scores[:, n].std(correction=0).item(), abs=1e-5)
        assert by_name[column]["noise"] == (column == "words")
    means = [feature["mean"] for feature in said["post"]["features"]]
    assert means == sorted(means, reverse=True)
    assert said["post"]["noise_against_others"]["noise_mean"] == by_name["words"]["mean"]
    assert said["items"]["noise_against_others"] is None  # none of its features is noise


def test_noise_that_is_scored_down():
    features = [{"mean": mean, "noise": mean < 0.25} for mean in (0.1, 0.2, 0.3, 0.4, 0.5)]
    found = noise_against_others(features)
    assert (found["noise"], found["informative"]) == (2, 3)
    assert found["noise_mean"] == pytest.approx(0.15)
    assert found["informative_mean"] == pytest.approx(0.4)
    assert found["p"] == pytest.approx(1 / 10)  # one of the 5 over 2 ways to place them is as extreme


def test_gates_stand_as_open_as_their_weights_say(schema):
    torch.manual_seed(0)
    target = schema.only(("post",))
    task = materialise(
        MODELS["mkt_finetune"].build(
            target, settings_of(**TEM), EMBEDDINGS, 0, SourceRun(schema, settings_of(**MEM), EMBEDDINGS)
        )
    )
    batches = list(Loader(target, LoaderSettings(batch_size=64), "train").batches())
    gate = task.net.gates["common"].gate
    torch.nn.init.zeros_(gate.weight)
    torch.nn.init.constant_(gate.bias, np.log(0.72 / 0.28))
    found = GateOpenness(task.net)
    diagnosis.measure(task, [found], batches)
    gates = found.values()["gates"]
    assert set(gates) == {"gates.user", "gates.sequence", "gates.shared", "gates.common"}
    said = gates["gates.common"]
    assert said["mean"] == pytest.approx(0.72, abs=1e-6)
    assert said["std"] == pytest.approx(0, abs=1e-3)
    assert said["count"] == said["histogram"][14] == 160 * 5
    with torch.no_grad():
        open_user = [
            task.net.gates["user"].openness(task.teacher(b)["user"], task.net.vectors(task.embeddings(b))["user"])
            for b in batches
        ]
    assert gates["gates.user"]["mean"] == pytest.approx(torch.cat(open_user).mean().item(), abs=1e-5)
    assert 0 < gates["gates.user"]["mean"] < 1


def test_a_line_that_a_killed_run_left_unfinished_is_passed_over(schema, tmp_path):
    lines = '{"step": 1, "cosine/post": 0.5}\n{"step": 2, "loss": 1.0}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines + '{"step": 3, "cosine/po')
    assert logged_cosines(tmp_path, schema)["post"] == [{"step": 1, "cosine": 0.5}]
    path.write_text('{"step": 1,\n' + lines)
    with pytest.raises(UserError, match=r"metrics.jsonl:1: no JSON object"):
        logged_cosines(tmp_path, schema)
