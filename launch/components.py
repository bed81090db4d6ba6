"""TorchX components: `torchx run launch/components.py:train --config configs/single_cj.yaml --run_dir runs/one`.

TorchX reads the annotations as types: no `from __future__ import annotations` here.
"""

from torchx import specs
from torchx.components.dist import ddp


def train(
    config: str,
    run_dir: str,
    j: str = "1x2",
    resume: bool = False,
    threads: int = 1,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    image: str = "",
    max_retries: int = 0,
) -> specs.AppDef:
    """Train one model on several processes.

    Args:
        config: YAML file of the run.
        run_dir: folder for everything the run writes, seen by all nodes.
        j: nodes x processes per node.
        resume: go on from the last checkpoint in run_dir.
        threads: CPU threads of a process.
        cpu: CPUs per node.
        gpu: GPUs per node.
        memMB: memory per node.
        image: container image, or the folder to run in for local schedulers.
        max_retries: restarts of the job by torchelastic when a process dies.
    """
    return ddp(
        "train",
        config,
        "--run-dir",
        run_dir,
        *(["--resume"] if resume else []),
        m="torchrec_xd.cli",
        name=f"torchrec-xd-{config.rpartition('/')[2].removesuffix('.yaml')}",
        image=image,
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        env={"OMP_NUM_THREADS": str(threads)},
        max_retries=max_retries,
    )
