"""The original scripts' chain beside ours: the same values, and a gate that notices when they are not."""

import functools
import shutil

import dlib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks import machine, naive_gates, pipeline, pipeline_configs
from benchmarks.drawn_clips import add_crops, draw_movies
from benchmarks.naive_chain import NaiveChain, Published, files_by_number, read_picture, write_png
from extract.config import load_extract_config
from extract.graph import build_graph
from extract.inputs import media
from extract.models import realesrgan
from extract.models.ffhq import align as ffhq
from extract.models.ffhq import with_pillow
from extract.stage import Context
from extract.weights.files import Weights
from extract.weights.resolving import resolve

CPU = torch.device("cpu")
FRAMES, COMPARED = 14, 6
WORDS = "word,start_s,end_s\nup,0.10,0.20\nand,0.22,0.30\nup,0.60,0.65\n"


@pytest.fixture(scope="module", autouse=True)
def _one_predictor():
    """dlib's landmark file, 100 MB, is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlib, "shape_predictor", functools.cache(dlib.shape_predictor))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("naive")


@pytest.fixture(scope="module")
def movie(folder):
    """A drawn clip of 0.56 s on a canvas, with words in its first half."""
    (clip,) = draw_movies(folder / "clips", 1, FRAMES, size=(320, 280))
    clip.transcript.write_text(WORDS.rpartition("up")[0])
    return clip


@pytest.fixture(scope="module")
def config(folder):
    found = pipeline_configs.small(folder)
    return found.model_copy(update={"run": found.run.model_copy(update={"cpu_threads": 1})})


@pytest.fixture(scope="module")
def compared(config, movie, folder):
    """Both ways, and the steps of the chain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(naive_gates, "GATE_FRAMES", COMPARED)
        yield naive_gates.done_both_ways(config, movie, folder / "both", CPU, torch.float32)


def chain(config, folder, *steps, **settings):
    return NaiveChain(config, folder, CPU, torch.float32, only=steps, **settings)


def test_movies(compared):
    gates = compared[0].gates(compared[1])
    assert [gate.step for gate in gates] == [
        "crop", "superres", "landmarks", "align", "ghfeat", "ghfeat, whole chain", "swin", "swin, whole chain",
        "roberta",
    ]  # fmt: skip
    assert [str(gate) for gate in gates if not gate.holds] == []


def test_given_crops(config, movie, folder, monkeypatch):
    monkeypatch.setattr(naive_gates, "GATE_FRAMES", 3)
    (given,) = add_crops([movie], folder / "faces")
    assert len(list(given.crops.iterdir())) == FRAMES
    gates = naive_gates.check(config, given, folder / "given", CPU, torch.float32)
    assert len(gates) == 9
    assert [str(gate) for gate in gates if not gate.holds] == []
    assert not list((folder / "given" / "naive" / given.id / "frames").iterdir())


def exchanged(files):
    first, *_, last = (path.read_bytes() for path in files)
    files[0].write_bytes(last)
    files[-1].write_bytes(first)


def brighter(files):
    for path in files:
        write_png(path, np.minimum(read_picture(path).astype(int) + 2, 255).astype(np.uint8))


def off(files, by=0.01):
    for path in files:
        values = np.load(path)
        np.save(path, values + by * np.abs(values).mean())


@pytest.mark.parametrize(
    ("step", "damage", "failing"),
    [
        ("crop", brighter, {"crop", "swin"}),
        ("crop", exchanged, {"crop", "swin"}),
        ("superres", brighter, {"superres"}),
        ("landmarks", lambda files: off(files, 0.05), {"landmarks"}),
        ("align", lambda files: [brighter(files), brighter(files)], {"align", "ghfeat"}),
        ("ghfeat", off, {"ghfeat"}),
        ("ghfeat", exchanged, {"ghfeat"}),
        ("swin", off, {"swin", "swin, whole chain"}),
        ("swin", exchanged, {"swin", "swin, whole chain"}),
        ("roberta", off, {"roberta"}),
        ("roberta", lambda files: files[0].unlink(), {"roberta"}),
    ],
    ids=[
        "crop levels", "crop order", "superres", "landmarks", "align", "ghfeat", "ghfeat order", "swin", "swin order",
        "roberta", "roberta frames",
    ],
)  # fmt: skip
def test_what_a_gate_notices(compared, tmp_path, step, damage, failing):
    both, _ = compared
    shutil.copytree(both._naive, tmp_path / "damaged")
    damage(sorted((tmp_path / "damaged" / step).iterdir()))
    both = naive_gates.Compared(both._config, both._store, both._clip, tmp_path / "damaged", CPU, torch.float32)
    affected = {"landmarks": ["align"], "crop": ["crop", "swin"], "align": ["align", "ghfeat"]}.get(step, [step])
    found = {gate.step for gate in both.gates(affected) if not gate.holds}
    assert failing <= found


def test_files_for_every_frame(compared):
    folder = compared[0]._naive
    numbers = list(range(1, COMPARED + 1))
    for step in ("frames", "crop", "patch", "superres", "align", "landmarks", "ghfeat", "swin"):
        assert list(files_by_number(folder / step)) == numbers, step
    shapes = {step: read_picture(folder / step / "00001.png").shape for step in ("frames", "crop", "superres", "align")}
    assert shapes == {"frames": (280, 320, 3), "crop": (112, 112, 3), "superres": (448, 448, 3), "align": (64, 64, 3)}
    assert np.load(folder / "ghfeat" / "00001.npy").shape == (14, 64)
    assert np.load(folder / "swin" / "00001.npy").shape == (256,)


def test_the_scripts_own_settings(compared, config, movie, tmp_path, monkeypatch):
    """FFHQ's: the detector sees the picture doubled, Pillow samples 4096 pixels."""
    assert Published() == Published(upsample=1, transform_size=4096)
    shutil.copytree(compared[0]._naive / "superres", tmp_path / movie.id / "superres")
    from extract.models.dlib_faces import DlibFaces

    doubled = []
    detect = DlibFaces.detect
    monkeypatch.setattr(DlibFaces, "detect", lambda self, *given: doubled.append(given[1]) or detect(self, *given))
    chain(config, tmp_path, "align", most_frames=1).run([movie])
    assert doubled == [1]
    marks = torch.from_numpy(np.load(tmp_path / movie.id / "landmarks" / "00001.npy"))
    picture = read_picture(tmp_path / movie.id / "superres" / "00001.png")
    plan = ffhq.plan(marks[None], [torch.from_numpy(picture)], 64).row(0)
    expected = with_pillow.align(picture, plan, 64, 4096)
    assert np.array_equal(read_picture(tmp_path / movie.id / "align" / "00001.png"), expected)


def test_a_picture_without_a_face_is_left_out(config, movie, tmp_path):
    into = tmp_path / movie.id / "superres"
    into.mkdir(parents=True)
    Image.new("RGB", (448, 448), (90, 90, 90)).save(into / "00001.png")
    chain(config, tmp_path, "align").run([movie])
    assert files_by_number(tmp_path / movie.id / "align") == {}


def test_a_chain_that_finds_no_face_fails(compared, tmp_path):
    both = compared[0]
    shutil.copytree(both._naive, tmp_path / "n")
    for step in ("landmarks", "align", "ghfeat"):
        shutil.rmtree(tmp_path / "n" / step)
        (tmp_path / "n" / step).mkdir()
    none = naive_gates.Compared(both._config, both._store, both._clip, tmp_path / "n", CPU, torch.float32)
    assert [gate.holds for gate in none.gates(["align", "ghfeat"])] == [False, False]


def test_hubert_hears_two_seconds_around_each_frame(compared, config, movie, tmp_path, monkeypatch):
    """The clip is shorter than that: every window is the whole recording, and the values are ours."""
    chain(config, tmp_path, "hubert", most_frames=3).run([movie])
    found = [np.load(path) for path in files_by_number(tmp_path / movie.id / "hubert").values()]
    ours = compared[0]._store.read(movie.id, "hubert", "feature").values
    assert len(found) == 3
    for window in found:
        np.testing.assert_allclose(window, ours.astype(np.float32), atol=4e-3)
    # Of ten seconds, frame 0 hears two and a frame in the middle four.
    lasting = media.read_audio(movie.video, hz=16_000)
    monkeypatch.setattr(type(lasting), "samples", property(lambda _: np.zeros(160_000, np.float32)))
    monkeypatch.setattr("benchmarks.naive_chain.Scripts.times", lambda *_: iter([(1, 0.0), (2, 5.0), (3, 9.5)]))
    chain(config, tmp_path / "long", "hubert").run([movie])
    steps = [len(np.load(path)) for path in files_by_number(tmp_path / "long" / movie.id / "hubert").values()]
    assert steps == [(n - 400) // 320 + 1 for n in (32_000, 64_000, 40_000)]


def test_a_run_of_each_contender(config, movie, tmp_path):
    """What is timed leaves loading out; a naive chain does the frames that it is asked for."""
    case = pipeline.Case("movies", [movie], config, CPU, torch.float32, naive_frames=2)
    found = {contender.name: contender.run(tmp_path / contender.name) for contender in case.contenders()}
    assert set(found) == {*pipeline.ENGINES, "naive"}
    for name, measured in found.items():
        assert measured.frames == (2 if name == "naive" else FRAMES)
        assert min(measured.work_s, measured.setup_s, measured.cores) > 0
    assert {"cpu", "write"} <= found["lanes"].shares.keys()
    assert sum(found["naive"].shares.values()) == pytest.approx(1, abs=0.01)
    assert list(found["naive"].shares) == [
        "frames", "crop", "superres", "align", "ghfeat", "swin", "hubert", "roberta",
    ]  # fmt: skip


# ---- configs -------------------------------------------------------------------------------------------------------


def test_published_sizes_are_read_from_files(tmp_path):
    """On the demo's config, whose networks are small: as for the default's."""
    config = pipeline_configs.published(tmp_path, "demo")
    graph = build_graph(config)
    named = {name: instance.stage.weights for name, instance in graph.items() if instance.stage.device == "gpu"}
    assert "random" not in named.values()
    for name in ("ghfeat", "swin", "hubert", "roberta"):
        stage = graph[name].stage
        drawn = resolve("random", stage)
        weights = resolve(stage.weights, stage)
        assert all(torch.equal(drawn.tensors()[key], tensor) for key, tensor in weights.tensors().items())
        stage.setup(Context(CPU, torch.float32, weights))
    sizes = {
        name: instance.stage.architecture for name, instance in build_graph(load_extract_config("default")).items()
    }
    assert sizes["roberta"] == "large"


def test_a_face_stays_one_through_the_drawn_network(compared, tmp_path):
    """As a released file would have it, and unlike ``random``, which shows noise on grey."""
    path = tmp_path / "x4.safetensors"
    drawn = pipeline_configs.seeing(realesrgan.random_weights(num_blocks=1))
    save_file({name: torch.from_numpy(values) for name, values in drawn.items()}, path)
    upscaler = realesrgan.load(Weights(str(path), "", "", "", path=path))
    patch = read_picture(compared[0]._naive / "patch" / "00001.png")[20:68, 30:78]
    large = realesrgan.enhance(upscaler, patch, realesrgan.Inference())
    expected = patch.repeat(4, axis=0).repeat(4, axis=1)
    assert np.corrcoef(large.ravel(), expected.ravel())[0, 1] > 0.97
    assert np.abs(large.astype(int) - expected).max() > 0  # the rest of the network shows


def test_in_float16_the_judge_is_float32(compared):
    """Two float16 ways may be apart by more than either is from float32."""
    both = compared[0]
    half = naive_gates.Compared(both._config, both._store, both._clip, both._naive, CPU, torch.float16)
    (gate,) = half.gates(["superres"])
    assert gate.holds, gate
    assert "of the levels within 1 of float32, the scripts' 100.000%" in gate.found


def test_the_drawn_vocabulary(tmp_path):
    pipeline_configs.write_vocabulary(tmp_path, 2000)
    tokenizer = Tokenizer(models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokenizer.get_vocab_size() == 2000
    assert tokenizer.encode("<s>").ids != [0]  # specials are not spoken
    from extract.demo.sound import load_words

    words = {word.text for voice in load_words().values() for word in voice}
    text = " ".join(sorted(words))
    assert len(tokenizer.encode(text).ids) < len(text) / 2


# ---- the command ---------------------------------------------------------------------------------------------------


def contender(name, *speeds):
    return pipeline.Contender(name, None, [pipeline.Measured(10, 10 / speed, 1, 1, {}) for speed in speeds])


def test_ratios_are_those_of_the_rounds():
    found = pipeline.ratio([contender("serial", 10, 20, 30), contender("naive", 1, 4, 2)], "serial", "naive")
    assert found.median == 10
    assert found.low == pytest.approx(6)
    assert found.high == pytest.approx(14)
    assert str(found) == "naive takes 10.00 times as long as serial [6.00, 14.00]"


@pytest.mark.parametrize(
    ("equal", "loads", "gemm", "code"),
    [
        (True, (0.5, 1.0), (100, 110), 0),
        (False, (0.5, 1.0), (100, 110), 1),
        (True, (0.5, 1.6), (100, 110), 2),
        (True, (0.5, 1.0), (100, 120), 2),
        (False, (2.5, 1.0), (100, 110), 1),
    ],
    ids=["fine", "not equal", "others at work", "another speed", "both"],
)
def test_how_it_ends(monkeypatch, tmp_path, capsys, equal, loads, gemm, code):
    facts = {"device": "a machine", "cores": 2, "torch": "2", "precision": "float32", "commit": "abc"}
    before = facts | {"gemm_gflops": gemm[0], "load_per_core": loads[0]}
    monkeypatch.setattr(pipeline, "machine", lambda _: before)
    monkeypatch.setattr(machine, "gemm_gflops", lambda *_: gemm[1])
    monkeypatch.setattr(machine, "load_per_core", lambda: loads[1])
    case = pipeline.Case("movies", [], None, CPU, torch.float32, 1)
    monkeypatch.setattr(pipeline, "cases", lambda *_: [case])
    rounds = [contender("serial", 10, 20), contender("naive", 1, 2)]
    measured = (rounds, [pipeline.ratio(rounds, "serial", "naive")], equal)
    monkeypatch.setattr(pipeline, "measure", lambda *_: measured)
    text, output = tmp_path / "t.txt", tmp_path / "o.json"
    arguments = ["--device", "cpu", "--pairs", "2", "--text", str(text), "-o", str(output)]
    assert pipeline.main(arguments) == code
    assert text.read_text() == capsys.readouterr().out
    assert ("a gate failed" in text.read_text()) == (not equal)
    assert '"median": 10.0' in output.read_text()


def test_engines_that_differ_fail_the_gate(tmp_path):
    for name in pipeline.ENGINES:
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "a" / "c.0").write_bytes(b"1")
    assert pipeline.engines_agree(tmp_path).holds
    (tmp_path / "serial" / "a" / "c.0").write_bytes(b"2")
    assert not pipeline.engines_agree(tmp_path).holds
    (tmp_path / "serial" / "a" / "c.0").unlink()
    assert not pipeline.engines_agree(tmp_path).holds


def test_a_run_that_fails_is_no_speed(config, movie, tmp_path):
    broken = movie.model_copy(update={"video": tmp_path / "torn.mp4"})
    broken.video.write_bytes(b"no movie")
    with pytest.raises(RuntimeError, match="the serial engine failed"):
        pipeline.ours(config, [broken], "serial", CPU, tmp_path / "store")
