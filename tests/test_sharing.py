"""A run as one folder: it predicts on a machine that never saw run or store, and anything foreign in it is refused."""

import json
import shutil

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

import fusion
from extract.au import AUS
from extract.errors import CorruptError, StoreError, UsageError, WeightsError
from fusion import sharing
from fusion.cli import app
from fusion.config import FusionConfig
from fusion.runs import METRICS, Run
from fusion.sharing import CARD, FACTS, POSTPROCESS, TENSORS, export, fitted_model, public_name
from fusion.training import fit
from tests.fusion_stores import planted_store
from tests.test_prediction import cache, fitted, movie, rewrite, table, tone  # noqa: F401 - fixtures
from tests.test_prediction_tables import post

CONFIG = FusionConfig.model_validate({
    "modalities": {
        "swin": {"kind": "frame", "instance": "swin", "array": "feature", "project": 8},
        "hubert": {"kind": "steps", "instance": "hubert", "array": "feature", "project": 4},
    },
    "model": {"head": 8, "hidden": 4},
    "training": {"max_epochs": 1, "min_epoch_steps": 1},
})


VAL = ("v", "w", "y", "z")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on planted features, with post-processing, and its store ``s``."""
    root = tmp_path_factory.mktemp("planted")
    splits = {"a": "train", "b": "train", **dict.fromkeys(VAL, "val"), "x": "test"}
    planted_store(root / "s", splits, num_frames=12)
    fit(root / "s", root / "run", CONFIG)
    (root / "run" / POSTPROCESS).write_text(json.dumps(post().as_json()))
    return root / "run"


@pytest.fixture
def folder(run, tmp_path):
    return export(run, tmp_path / "shared")


def edited(folder, change, *, sign=True):
    """Change ``fusion.json``; ``sign``: as somebody would who knows its checksum."""
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    if sign:
        facts["sha256"] = sharing._digest(facts)
    (folder / FACTS).write_text(json.dumps(facts))


def test_an_export_predicts_as_the_run_does_without_run_and_store(fitted, tmp_path, monkeypatch):  # noqa: F811
    video = movie(tmp_path / "a.mov", sound=tone(0.4))
    shutil.copytree(fitted / "run", tmp_path / "run")
    (tmp_path / "run" / POSTPROCESS).write_text(json.dumps(post().as_json()))
    fusion.predict([video], tmp_path / "run", output=tmp_path / "before", fill=True)
    told = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "-o", str(tmp_path / "shared")])
    assert told.exit_code == 0, told.output
    assert f"fusion predict VIDEO --run {tmp_path / 'shared'}" in told.stdout
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setenv("AU_FUSION_CACHE", str(tmp_path / "another cache"))
    result = CliRunner().invoke(
        app, ["predict", str(video), "--run", str(tmp_path / "elsewhere"), "-o", str(tmp_path / "after"), "--fill"]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "after" / "a.csv").read_bytes() == (tmp_path / "before" / "a.csv").read_bytes()
    before, after = (json.loads((tmp_path / name / "a.json").read_text()) for name in ("before", "after"))
    assert before.pop("run")["sha256"] != after.pop("run")["sha256"]  # of another file with the same network
    assert before == after


def test_evaluate_takes_an_export(run, folder):
    one, other = (fusion.evaluate(run.parent / "s", where) for where in (run, folder))
    assert one.scores.as_json() == other.scores.as_json()


def test_everything_of_the_run_is_in_it(run, folder):
    here, there = Run(run).model(), fitted_model(Run(folder))
    for name in ("config", "sizes", "recipes", "clips", "epoch", "untrained", "drawn", "crops"):
        assert getattr(here, name) == getattr(there, name), name
    assert not there.model.training
    tensors = here.model.state_dict()
    assert there.model.state_dict().keys() == tensors.keys()
    assert all((there.model.state_dict()[name] == value).all() for name, value in tensors.items())
    facts = json.loads((folder / FACTS).read_text())
    assert facts["run"]["clips"] == {"train": ["a", "b"], "val": [*VAL]}
    metrics = json.loads((run / METRICS).read_text())
    assert facts["scores"]["val"]["f1"] == metrics["val"]["f1"]
    assert "features" in metrics["val"]
    assert "features" not in facts["scores"]["val"]


def test_nothing_in_it_is_a_pickle(folder):
    assert {path.name for path in folder.iterdir()} == {FACTS, TENSORS, CARD, POSTPROCESS}
    with safe_open(folder / TENSORS, "pt") as file:
        assert file.keys()
    for name in (FACTS, POSTPROCESS):
        json.loads((folder / name).read_text())
    for path in folder.iterdir():
        assert not path.read_bytes().startswith((b"PK", b"\x80"))


def test_no_path_of_the_machine_is_in_it(run, tmp_path):
    """Weights go by sha256 and file name, whatever kind of path the config had."""
    paths = {"1" * 64: "/data/kim/secret/hubert.safetensors", "2" * 64: r"C:\Users\kim\swin.bin", "3" * 64: "random"}
    copy = rewrite(run, tmp_path / "run", weights=paths)
    folder = export(copy, tmp_path / "shared")
    whole = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    for secret in (b"kim", b"secret", b"Users", str(tmp_path).encode(), str(run.parent).encode()):
        assert secret not in whole
    assert fitted_model(Run(folder)).weights == {
        "1" * 64: "hubert.safetensors",
        "2" * 64: "swin.bin",
        "3" * 64: "random",
    }


@pytest.mark.parametrize("path", ["/data/kim/words.txt", "~/words.txt", r"C:\words.txt", r"\\share\words.txt"])
def test_a_recipe_that_names_a_path_is_not_shared(run, tmp_path, path):
    recipes = Run(run).model().recipes
    copy = rewrite(run, tmp_path / "run", recipes={**recipes, "swin": {**recipes["swin"], "config": {"words": path}}})
    with pytest.raises(UsageError, match=r"run\.recipes\.swin\.config\.words: .* is a path of this machine"):
        export(copy, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("spec", "name"),
    [("hubert-base-ls960", "hubert-base-ls960"), ("random", "random"), ("../a/b.bin", "b.bin"), ("/", "unnamed")],
)
def test_public_names(spec, name):
    assert public_name(spec) == name


def test_missing_weights_are_named_with_their_sha256(fitted, tmp_path):  # noqa: F811
    model = Run(fitted / "run").model()
    sha256 = model.recipes["hubert"]["weights"]
    copy = rewrite(fitted / "run", tmp_path / "run", weights={**model.weights, sha256: "/gone/mine.safetensors"})
    folder = export(copy, tmp_path / "shared")
    message = rf"mine\.safetensors(.|\n)*--set INSTANCE\.weights=PATH:\n  hubert: mine\.safetensors, sha256 {sha256}"
    with pytest.raises(WeightsError, match=message):
        fusion.predict([movie(tmp_path / "a.mov")], folder, output=tmp_path)
    assert f"--set hubert.weights=PATH` (mine.safetensors, sha256 `{sha256}`)" in (folder / CARD).read_text()


# ---- the card ------------------------------------------------------------------------------------------------------


def test_the_card_says_how_good_it_is_and_what_it_is_not_for(run, folder):
    card = (folder / CARD).read_text()
    metrics = json.loads((run / METRICS).read_text())
    val = metrics["val"]
    best = max(val["baselines"], key=lambda name: val["baselines"][name]["f1"]["mean"])
    low, high = val["f1_interval_95"]
    row = (
        f"| val | 4 | 48 | {100 * val['f1']['mean']:.1f} | {100 * low:.1f} to {100 * high:.1f} | "
        f"{best} {100 * val['baselines'][best]['f1']['mean']:.1f} |"
    )
    assert row in card
    for text in ("## Intended use and limits", "train: 2 clips", "licence", "`postprocess.json` is applied", "AU26"):
        assert text in card
    assert all(len(line) < 400 for line in card.splitlines())


def test_the_card_names_licences_and_what_is_untrained_or_drawn(fitted, tmp_path):  # noqa: F811
    copy = rewrite(fitted / "run", tmp_path / "run", drawn=1, crops={"swin": "given"})
    (copy / POSTPROCESS).unlink(missing_ok=True)
    card = (export(copy, tmp_path / "shared") / CARD).read_text()
    assert "**Untrained encoders (random weights): swin, hubert, roberta.**" in card
    assert "**Synthetic data: 1 of 1 clips were drawn by a program.**" in card
    from extract.weights.table import TABLE

    row = TABLE["dlib-68-landmarks"]
    assert f"| {row.key} | detections | {row.licence} | {row.trained_on} |" in card
    assert "| random | swin | none | nothing: untrained |" in card
    assert "crops that the clips brought" in card
    assert "Without post-processing" in card


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TENSORS, POSTPROCESS, CARD, FACTS])
def test_a_flipped_bit_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CorruptError, match=rf"{name}: .*copy the folder anew, or run `fusion export` again") as refused:
        fitted_model(Run(folder))
    assert refused.value.exit_code == 4


@pytest.mark.parametrize("name", [TENSORS, POSTPROCESS, CARD])
def test_a_file_that_is_gone_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CorruptError, match=rf"{name}: cannot be read \(No such file or directory\)"):
        fitted_model(Run(folder))


@pytest.mark.parametrize("size", [0, 60])
@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_file_that_was_cut_is_damaged(folder, name, size):
    (folder / name).write_bytes((folder / name).read_bytes()[:size])
    with pytest.raises(CorruptError, match=rf"{name}: "):
        fitted_model(Run(folder))


def test_facts_that_were_edited_are_found(folder):
    edited(folder, lambda facts: facts["run"].update(epoch=99), sign=False)
    with pytest.raises(CorruptError, match=r"fusion\.json: its content is not the one that was exported"):
        fitted_model(Run(folder))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.update(format="other"), StoreError, r"format 'other', expected 'au-fusion-run'"),
        (lambda f: f.update(schema=2), StoreError, r"schema 2, this program knows 1; use the version that wrote it"),
        (
            lambda f: f["run"]["sizes"].update(swin=65),
            CorruptError,
            r"swin\S* has shape \(.*64,?\), expected \(.*65,?\)",
        ),
        (
            lambda f: f["run"]["sizes"].update(swin=10**11),
            CorruptError,
            r"swin\S* has shape .*, expected \(.*100000000000,?\)",
        ),
        (lambda f: f["run"]["sizes"].update(more=3), CorruptError, r"sizes of .*more, modalities swin, hubert"),
        (lambda f: f["run"]["sizes"].update(swin="x"), CorruptError, r"run\.sizes\.swin: Input should be a valid int"),
        (lambda f: f["run"]["config"]["model"].update(head=9), CorruptError, r"describes another network"),
        (lambda f: f["run"]["config"].update(more=9), CorruptError, r"run\.config\.more: Extra inputs"),
        (lambda f: f["run"].pop("recipes"), CorruptError, r"run has no recipes"),
        (lambda f: f.update(run=None), CorruptError, r"run has no "),
        (lambda f: f["files"].pop(TENSORS), CorruptError, r"expected model\.safetensors among them"),
        (lambda f: f["files"].update({"../x": "0"}), CorruptError, r"files \{.*expected model\.safetensors among"),
        (lambda f: f["files"].pop(POSTPROCESS), CorruptError, r"postprocess\.json: does not belong to this export"),
    ],
)
def test_what_does_not_fit_is_refused_even_if_it_is_signed(folder, change, error, message):
    edited(folder, change)
    with pytest.raises(error, match=message):
        fitted_model(Run(folder))


def test_what_was_recorded_later_may_be_absent(folder):
    edited(folder, lambda facts: facts["run"].pop("crops"))
    assert fitted_model(Run(folder)).crops == {}


def test_half_a_folder_says_so(folder):
    (folder / FACTS).unlink()
    with pytest.raises(UsageError, match=r"has model\.safetensors but no fusion\.json: an export that was interrupted"):
        fitted_model(Run(folder))


def test_an_interrupted_export_is_written_anew(run, folder):
    before = (folder / FACTS).read_bytes()
    (folder / FACTS).unlink()
    assert (export(run, folder) / FACTS).read_bytes() == before


def test_other_content_is_left_alone(run, folder, tmp_path):
    with pytest.raises(UsageError, match=r"holds an export already; name another folder"):
        export(run, folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").touch()
    with pytest.raises(UsageError, match=r"holds something else \(x\.txt\)"):
        export(run, tmp_path / "notes")
    with pytest.raises(UsageError, match=r"is a file; name a folder"):
        export(run, tmp_path / "notes" / "x.txt")
    with pytest.raises(UsageError, match=r"was exported already; copy the folder"):
        export(folder, tmp_path / "again")


def test_an_unfinished_run_is_not_shared(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / METRICS).unlink()
    with pytest.raises(UsageError, match=r"is not finished; `fusion fit -o .*run` continues it"):
        export(tmp_path / "run", tmp_path / "shared")
    (tmp_path / "run" / METRICS).write_text("{")
    with pytest.raises(CorruptError, match=r"metrics\.json: damaged"):
        export(tmp_path / "run", tmp_path / "shared")


def test_all_aus_have_a_name_in_the_facts(folder):
    assert json.loads((folder / FACTS).read_text())["aus"] == [f"AU{number:02d}" for number in AUS]
