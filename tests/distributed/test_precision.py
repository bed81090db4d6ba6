"""Settings of a GPU's arithmetic: switches of this process, so that no GPU is needed to see them thrown."""

from __future__ import annotations

import os

import pytest
import torch

from torchrec_xd.distributed.precision import arithmetic


def switches() -> tuple[bool, bool, str | None]:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # to be restored after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize(
    ("device", "tf32", "deterministic", "inside"),
    [
        ("cuda", True, False, (True, False, None)),
        ("cuda", False, False, (False, False, None)),
        ("cuda", False, True, (False, True, ":4096:8")),
        ("cpu", True, True, (False, False, None)),
    ],
)
def test_they_hold_inside_the_block(
    device: str, tf32: bool, deterministic: bool, inside: tuple[bool, bool, str | None]
) -> None:
    with arithmetic(torch.device(device), tf32=tf32, deterministic=deterministic):
        assert switches() == inside
    assert switches()[:2] == (False, False)


def fail_inside() -> None:
    with arithmetic(torch.device("cuda"), tf32=False, deterministic=False):
        assert switches()[:2] == (False, False)
        raise ZeroDivisionError


def test_what_was_set_before_holds_again_after_an_error() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ZeroDivisionError):
            fail_inside()
        assert switches()[:2] == (True, True)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


def test_a_workspace_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with arithmetic(torch.device("cuda"), tf32=True, deterministic=True):
        assert switches()[2] == ":16:8"
