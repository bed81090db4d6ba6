import pytest
import torch

from torchrec_xd.modules.ple import SHARED, Experts, ProgressiveLayeredExtraction

ROWS = {"items": slice(0, 3), "b": slice(3, 4), "c": slice(4, 4)}


def ple(levels=1, outputs=("items", "b", "c"), experts=(2, 3)):
    torch.manual_seed(0)
    return ProgressiveLayeredExtraction(
        5, Experts([7, 4], *experts), domains=tuple(ROWS), outputs=outputs, levels=levels
    )


def reference(model, x):
    """Row by row, expert by expert, as the paper's equations read."""

    def mix(gate, x, experts):
        weights = torch.softmax(gate.linear(x), dim=0)
        return sum(w * e for w, e in zip(weights, experts, strict=True))

    common = {}
    for domain, rows in ROWS.items():
        out = []
        for row in x[rows]:
            paths = dict.fromkeys((*ROWS, SHARED), row)
            for level in model.levels:
                said = {path: [e(paths[path]) for e in level.experts[path]] for path in paths}
                new = {d: mix(level.gates[d], paths[d], said[d] + said[SHARED]) for d in ROWS}
                every = [e for path in (*ROWS, SHARED) for e in said[path]]
                paths = {**new, SHARED: mix(level.gates[SHARED], paths[SHARED], every)}
            own = [e(paths[domain]) for e in model.last.experts[domain]]
            shared = [e(paths[SHARED]) for e in model.last.experts[SHARED]]
            out.append(mix(model.last.gates[domain], paths[domain], own + shared))
        common[domain] = torch.stack(out) if out else torch.empty(0, 4)
    return common


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equals_the_equations_row_by_row(levels):
    model, x = ple(levels), torch.randn(4, 5)
    expected = reference(model, x)
    got = model(x, ROWS)
    assert list(got) == list(ROWS)
    for domain in ROWS:
        torch.testing.assert_close(got[domain], expected[domain])


@pytest.mark.parametrize("levels", [1, 2])
def test_a_domain_alone_says_the_same_with_what_it_does_not_need_pruned(levels):
    full, pruned, x = ple(levels), ple(levels, outputs=("b",)), torch.randn(4, 5)
    missing = pruned.load_state_dict(full.state_dict(), strict=False)
    assert not missing.missing_keys
    assert any("last.experts.m_items" in key for key in missing.unexpected_keys)
    got = pruned(x[ROWS["b"]], {"b": slice(0, 1)})
    torch.testing.assert_close(got["b"], full(x, ROWS)["b"])


def test_a_domain_moves_its_own_and_the_shared_experts_only():
    model = ple()
    model(torch.randn(4, 5), ROWS)["items"].sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("m_items" in name for name in moved)
    assert any(f"m_{SHARED}" in name for name in moved)
    assert not any("m_b." in name or "m_c." in name for name in moved)
