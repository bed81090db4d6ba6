"""Both stages of MKT as one job, for real: two processes, told to stop in the first stage, started again."""

import json
import signal
import time

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_a_stopped_job_goes_on_and_runs_both_stages(feed, tmp_path, torchx):
    run = tmp_path / "run"
    configs = ["--pretrain", feed / "pretrain.yaml", "--finetune", feed / "finetune.yaml", "--run_dir", run]
    job = ["mkt", *configs, "-j", "1x2", "pretrain.trainer.epochs=8"]

    stopped = torchx(*job)
    while not (run / "pretrain" / "metrics.jsonl").exists():
        assert stopped.poll() is None, stopped.stdout.read()
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode != 0
    (saved,) = (run / "pretrain" / "checkpoints").glob("step_*")
    assert not (run / "pretrain" / "metrics.json").exists(), said
    assert not (run / "finetune").exists()

    again = torchx(*job)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    first, second = (json.loads((run / stage / "metrics.json").read_text()) for stage in ("pretrain", "finetune"))
    steps = json.loads((run / "pretrain" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert first["train"]["steps"] == steps - int(saved.name.partition("_")[2])
    assert list(first["eval"]) == ["click@items", "click@video", "click@post"]
    assert list(second["eval"]) == ["click@post"]
    assert second["eval"]["click@post"]["rows"] == 200
    assert (run / "finetune" / "log.rank1.txt").exists()
    taught = json.loads((run / "finetune" / "transfer.json").read_text())["from"]
    assert taught == str(run / "pretrain" / "checkpoints" / first["checkpoint"])
