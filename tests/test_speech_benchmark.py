"""benchmarks/speech.py: its arithmetic is torch's own count, its gates catch other values, it says what it measured."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import adapt_steps, speech
from extract.models import hubert, roberta
from extract.stages.hubert import Hubert
from extract.stages.roberta import Roberta, RobertaConfig
from extract.weights.resolving import resolve
from tests.stages.test_hubert import LIKE_BASE

CPU = torch.device("cpu")


def counted(model, *inputs):
    """What torch's counter finds in a forward, in 1e9; its fused attention it does not know."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("architecture", ["small", "base"])
@pytest.mark.parametrize("seconds", [1, 3])
def test_arithmetic_of_hubert_is_torchs_count(monkeypatch, architecture, seconds):
    monkeypatch.setitem(hubert.ARCHITECTURES, "base", LIKE_BASE)
    stage = speech.ready(architecture, CPU, torch.float32)
    found = speech.hubert_gflop(hubert.ARCHITECTURES[architecture], 16_000 * seconds)
    assert found == pytest.approx(counted(stage._model, speech.sound(seconds)[None]), rel=1e-9)


def test_arithmetic_of_x_large_is_the_published_one():
    """GFLOP per second of sound: 94.4 of linear layers, 6.2 of convolutions, .614 T of attention in T seconds."""
    for seconds in (30, 100, 150):
        per_s = speech.hubert_gflop(hubert.ARCHITECTURES["xlarge"], 16_000 * seconds) / seconds
        assert per_s == pytest.approx(94.4 + 6.2 + 0.614 * seconds, rel=2e-3)


def test_arithmetic_of_roberta_is_torchs_count():
    sizes = roberta.ARCHITECTURES["small"]
    model = roberta.load("small", resolve("random", Roberta(RobertaConfig(weights="random", architecture="small"))))
    for length in (1, 15, 100):
        ids = torch.zeros((1, length + 2), dtype=torch.long)
        assert speech.roberta_gflop(sizes, [length]) == pytest.approx(counted(model, ids), rel=1e-9)
    each = [speech.roberta_gflop(sizes, [length]) for length in (3, 4)]
    assert speech.roberta_gflop(sizes, [3, 4]) == pytest.approx(sum(each), rel=1e-9)


def test_windows_are_the_distinct_texts():
    assert speech.lengths_of(torch.tensor([[0, 0], [0, 3], [0, 3], [3, 10], [0, 3], [10, 10]])) == [3, 7]


@pytest.fixture
def calm(monkeypatch):
    """A machine that is quiet and not probed."""
    after = lambda *_: SimpleNamespace(quiet=True)  # noqa: E731
    monkeypatch.setattr(speech, "said_after", after)
    monkeypatch.setattr(speech, "asdict", lambda row: dict(vars(row)))
    monkeypatch.setattr(speech, "gemm_gflops", lambda *_: 50.0)
    monkeypatch.setattr(speech, "MINUTES", {"cpu": 0.05})


@pytest.mark.usefixtures("calm")
def test_it_says_what_it_measured(tmp_path, capsys):
    code = speech.main(["--device", "cpu", "--pairs", "2", "--seconds", "2", "-o", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    assert code == 0, printed
    found = json.loads((tmp_path / "found.json").read_text())
    sound, words, updates = found["rows"]
    assert sound["what"] == "hubert small, 2 s"
    assert f"{sound['per_s']:,.1f} seconds of sound/s" in printed
    gflop = speech.hubert_gflop(hubert.ARCHITECTURES["small"], 32_000)
    assert sound["gemm_share"] == pytest.approx(gflop * sound["per_s"] / 2 / 50, rel=1e-9)
    assert words["what"].startswith("roberta small, ")
    assert f"{words['per_s']:,.1f} windows/s" in printed
    assert "relative from plain float32" in sound["gate"]
    assert updates["what"] == "adapt small"
    assert updates["gate"] == "the gradients of an update, 0.0e+00 apart (1e-6)"
    assert updates["per_s"] > 0


@pytest.mark.usefixtures("calm")
def test_other_features_fail_the_gate(monkeypatch, capsys):
    real = Hubert.compute

    def compute(self, inputs):
        found = real(self, inputs)
        return replace(found, arrays={"feature": found.arrays["feature"] * (1 + 1e-4)})

    monkeypatch.setattr(Hubert, "compute", compute)
    assert speech.main(["--device", "cpu", "--pairs", "2", "--seconds", "2", "--only", "hubert"]) == 1
    assert "hubert: NOT EQUAL: 1.0e-04 relative from float32" in capsys.readouterr().out


@pytest.mark.usefixtures("calm")
def test_another_gradient_fails_the_gate(monkeypatch, capsys):
    real = adapt_steps.loss_config
    monkeypatch.setattr(adapt_steps, "loss_config", lambda config: replace(real(config), penalty=9.0))
    assert speech.main(["--device", "cpu", "--pairs", "2", "--only", "adapt"]) == 1
    assert "adapt: NOT EQUAL: gradients " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--only", "hubert,adept"], "--only: adept unknown"),
        (["--seconds", "400"], "--seconds: 1 to 300"),
        (["--pairs", "1"], "--pairs: at least 2"),
        (["--hubert", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, wrong, message):
    with pytest.raises(SystemExit, match="2"):
        speech.main(wrong)
    assert message in capsys.readouterr().err
