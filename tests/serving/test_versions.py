"""Versions: a new one takes over without a lost request, a bad one is refused, a canary is stable by user."""

import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest

from tests.support.artifacts import OUTPUTS, expected, set_current, write_artifact
from tests.support.served import BODY, Served, wait_for
from torchrec_xd.errors import UserError
from torchrec_xd.serving import artifact
from torchrec_xd.serving.server_settings import ServerSettings
from torchrec_xd.serving.versions import LONGEST_PAUSE, Versions, share_of


@pytest.fixture
def out(tmp_path):
    for version in range(1, 7):
        write_artifact(tmp_path, version, bias=0.1 * version, current=False)
    set_current(tmp_path, 1)
    return tmp_path


def scored(version):
    return expected(7, [1, 2, 3], [4, 5], [0.5, 0.0], 0.1 * version)[OUTPUTS[0]]


def test_swaps_lose_no_request_and_bad_versions_are_refused(out):
    with Served(out) as own:
        found, failed, going = Counter(), [], threading.Event()

        def ask():
            with httpx.Client(base_url=own.lines[0]["address"], timeout=60) as client:
                while not going.is_set():
                    answer = client.post("/score", json=BODY)
                    if answer.status_code != 200:
                        failed.append(answer.text)
                        continue
                    content = answer.json()
                    np.testing.assert_allclose(content["scores"][OUTPUTS[0]], scored(content["version"]), atol=1e-6)
                    found[content["version"]] += 1

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(1, 7):
            set_current(out, version)
            wait_for(lambda version=version: found[version] >= 30)
        going.set()
        for thread in threads:
            thread.join()
        assert failed == []
        assert found.keys() == set(range(1, 7))
        assert sum(found.values()) >= 150
        assert [line["version"] for line in own.events("version taken over")] == [2, 3, 4, 5, 6]

        # a damaged one, one whose sample scores otherwise, one that is not there: refused, and 6 stays
        damaged = write_artifact(out, 7, current=False)
        (damaged / "tables.safetensors").write_bytes((damaged / "tables.safetensors").read_bytes()[:-4])
        write_artifact(out, 8, lie=0.01, current=False)
        for number, words in ((7, "tables.safetensors was cut short or changed"), (8, "scores its sample"), (99, "99")):
            set_current(out, number)
            wait_for(lambda words=words: any(words in line["reason"] for line in own.events("version refused")))
            assert own.client.post("/score", json=BODY).json()["version"] == 6
            assert own.events("version refused")[-1]["version"] == 6
        (out / "current.json").write_text("{")
        wait_for(lambda: any("cannot be read" in line["reason"] for line in own.events("version refused")))
        assert own.client.get("/v2/health/ready").json() == {"ready": True}
        assert "torchrec_xd_versions_refused_total 4.0" in own.client.get("/metrics").text
        set_current(out, 2)  # back to an earlier one
        wait_for(lambda: own.client.post("/score", json=BODY).json()["version"] == 2)


class Followed:
    """Versions without a server, on a clock of their own."""

    def __init__(self, monkeypatch, out, **settings):
        self.now, self.told, self.looks = 0.0, [], 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.versions = Versions(ServerSettings(out=out, **settings), lambda *event: self.told.append(event))
        load = self.versions._load

        def counted(folder):
            self.looks += 1
            return load(folder)

        monkeypatch.setattr(self.versions, "_load", counted)

    def numbers(self):
        return [version.number for version in self.versions.served()]

    def reasons(self):
        return [content["reason"] for event, content in self.told if event == "version refused"]


def taken_away(out, *versions):
    """Folders of versions elsewhere: files that a copy has not brought yet."""
    for version in versions:
        (out / "versions" / str(version)).rename(out / f"late-{version}")


def arrive(out, *versions):
    for version in versions:
        (out / f"late-{version}").rename(out / "versions" / str(version))


def test_a_version_whose_files_come_after_current_json_is_taken_over(out, monkeypatch):
    own = Followed(monkeypatch, out)
    own.versions.load()
    taken_away(out, 2)
    set_current(out, 2)
    for _ in range(200):  # a poll a second
        own.now += 1
        assert not own.versions.follow()
    assert own.numbers() == [1]
    assert len(own.reasons()) == 1, "a reason is told once"
    assert own.looks == 1 + 9, "1, 2, 4, 8, 16 and 32 seconds apart, then 60"
    arrive(out, 2)
    own.now += LONGEST_PAUSE
    assert own.versions.follow()
    assert own.numbers() == [2]
    assert not own.versions.follow()


def test_a_process_that_started_without_a_version_takes_what_comes_with_its_canary(out, monkeypatch):
    own = Followed(monkeypatch, out, canary=3)
    taken_away(out, 1, 3)
    with pytest.raises(UserError, match="1 is no artefact"):
        own.versions.load()
    own.now += 1
    assert not own.versions.follow()
    assert own.reasons() == [], "whoever called load told it"
    arrive(out, 1)
    own.now += 2
    assert not own.versions.follow()
    assert "3 is no artefact" in own.versions.reason
    assert own.reasons() == [own.versions.reason]
    arrive(out, 3)
    own.now += 4
    assert own.versions.follow()
    assert (own.numbers(), own.versions.reason) == ([1, 3], None)


def test_a_version_with_a_file_that_cannot_be_read_is_refused(out, monkeypatch):
    own = Followed(monkeypatch, out)
    own.versions.load()

    def sha256(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(artifact, "sha256", sha256)
    set_current(out, 2)
    assert not own.versions.follow()
    assert "cannot be read: [Errno 13] Permission denied; let this user read it" in own.reasons()[0]


def test_an_error_that_nobody_expected_is_no_reason_to_stop_looking(out, monkeypatch):
    own = Followed(monkeypatch, out)
    own.versions.load()
    load, faults = own.versions._load, [OSError("stale file handle")]
    monkeypatch.setattr(own.versions, "_load", lambda folder: load(folder) if not faults else _raise(faults.pop()))
    set_current(out, 2)
    with pytest.raises(OSError, match="stale"):
        own.versions.follow()
    own.now += 1
    assert own.versions.follow()
    assert own.numbers() == [2]


def test_a_version_of_another_model_than_the_canarys_is_refused(out, monkeypatch):
    own = Followed(monkeypatch, out, canary=3)
    own.versions.load()
    manifest = out / "versions" / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"other"'))
    set_current(out, 2)
    assert not own.versions.follow()
    assert own.numbers() == [1, 3]
    assert own.reasons() == [
        "canary: version 3 is a 'tiny', and the current version 2 a 'other': one server serves one model"
    ]


def _raise(error):
    raise error


def test_a_canary_answers_its_share_of_the_users_always_the_same(out):
    with Served(out, "--canary", "3", "--canary-share", "0.3") as own:
        assert own.lines[0]["versions"] == [1, 3]

        def version_of(user, place="/score"):
            return own.client.post(place, json={**BODY, "request": {**BODY["request"], "user": user}}).json()["version"]

        found = {user: version_of(user) for user in range(50)}
        assert found == {user: 3 if share_of(user) < 0.3 else 1 for user in range(50)}
        assert {1, 3} == set(found.values())
        assert found == {user: version_of(user) for user in range(50)}
        user = next(user for user, version in found.items() if version == 3)
        other = next(user for user, version in found.items() if version == 1)
        for place, users, version in (
            ("", [user], "3"),
            ("", [user, user], "3"),
            ("", [user, other], "1"),
            ("/versions/1", [user], "1"),
            ("/versions/3", [user, other], "3"),
        ):
            rows = len(users)
            given = [("user", [rows], users), ("hist", [rows, 1], [1] * rows)]
            given += [("item", [rows], [2] * rows), ("price", [rows], [0] * rows)]
            inputs = [{"name": n, "shape": s, "datatype": "INT64", "data": d} for n, s, d in given]
            answer = own.client.post(f"/v2/models/tiny{place}/infer", json={"inputs": inputs})
            assert answer.json()["model_version"] == version
        assert 'torchrec_xd_version{model="tiny",place="canary"} 3.0' in own.client.get("/metrics").text
        set_current(out, 2)
        wait_for(lambda: set(map(version_of, range(50))) == {2, 3})
        assert version_of(user) == 3


def test_shares_of_users_are_even_and_do_not_depend_on_the_type():
    shares = np.array([share_of(user) for user in range(20_000)])
    assert abs((shares < 0.1).mean() - 0.1) < 0.01
    assert shares.max() < 1
    assert share_of(7) == share_of("7")
    assert share_of("ü") != share_of("u")
