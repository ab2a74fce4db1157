"""Kill -9 between two pieces, at twenty random moments: nothing is paid for twice."""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import extract
from extract.answers import Answers
from extract.recognition.google import Google, GoogleConfig
from extract.store import Store
from tests.speech_service import Service, hears_its_name, word_of
from tests.spoken import write_bursts, write_config, write_manifest

KILLS, PARALLEL, CLIPS = 20, 2, 2


def work(folder: str) -> None:
    """One run, in a process that is going to be killed."""
    os.chdir(folder)
    os.environ["AU_FUSION_CACHE"] = str(Path(folder) / "cache")
    extract.run(store="store.zarr", config="c.yaml")


@pytest.mark.slow
def test_nothing_is_paid_for_twice_after_kill_9_at_20_random_moments(tmp_path):
    """The server looks at every request whether its answer is kept already. What was on its way at a kill is lost;
    everything else is asked for once."""
    with Service() as service:
        kill_and_count(tmp_path, service)


def kill_and_count(folder, service):
    write_config(folder, service, parallel=PARALLEL)
    lengths = [0.3 + 0.01 * i for i in range(70)]
    write_bursts(folder / "a.wav", *lengths)
    write_manifest(folder, a_left={"audio": "a.wav"}, a_right={"audio": "a.wav"})
    asking = Google(GoogleConfig(), "en-US", Answers(folder / "cache"), None)
    already_kept = []

    def reply(request):
        if Answers(folder / "cache").get(asking._key(request.content)) is not None:
            already_kept.append(word_of(request))
        time.sleep(0.02)
        return hears_its_name(request)

    service.reply = reply
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([
        "tests.test_google_kills",
        "extract.running.runner",
        "scipy.signal",
        "scipy.ndimage",
    ])
    for _ in range(KILLS):
        until = len(service.asked) + drawn.randint(1, 3)
        process = processes.Process(target=work, args=(str(folder),))
        process.start()
        while len(service.asked) < until:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(drawn.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = processes.Process(target=work, args=(str(folder),))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert already_kept == []
    times = Counter(word_of(request) for request in service.asked)
    assert len(times) == len(lengths)
    assert sum(times.values()) - len(lengths) <= KILLS * PARALLEL * CLIPS
    store = Store.open(folder / "store.zarr")
    left, right = (store.read(clip, "transcribe", "text").values.tolist() for clip in ("a_left", "a_right"))
    assert left == right
    assert len(left) == len(lengths)
    assert len(list((folder / "cache" / "answers").rglob("*.json"))) == len(lengths)
