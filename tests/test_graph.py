import pytest

from extract.config import ExtractConfig, load_extract_config, load_section
from extract.errors import ConfigError, UsageError
from extract.graph import build_graph, downstream, select, upstream

pytestmark = pytest.mark.usefixtures("toys")


def graph(**instances):
    return build_graph(ExtractConfig(instances=instances))


def test_what_feeds_an_instance_exists_without_being_listed():
    made = graph(swin={"weights": "random"})
    assert list(made) == ["frames", "detections", "faces", "crop", "swin"]


def test_one_stage_may_stand_under_several_names():
    made = graph(a={"stage": "colour"}, b={"stage": "colour", "gain": 2.0}, contrast={"inputs": {"colour": "b"}})
    assert made["contrast"].feeds == {"colour": "b"}
    assert select(made, ["colour"]) == ("a", "b")
    assert select(made, ["b"]) == ("b",)
    twins = graph(colour={}, other={"stage": "colour"})
    assert select(twins, ["colour"]) == ("colour", "other")
    assert upstream(made, ["contrast"]) == ("frames", "b", "contrast")
    assert downstream(made, ["b"]) == ("contrast",)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ({"sobel": {}}, r"instance sobel: no stage 'sobel'; known: .*frames.*says `stage:`"),
        ({"colour": {"gian": 2.0}}, r"instance colour \(stage colour\):\n  gian: unknown key; did you mean 'gain'"),
        ({"colour": {"gain": "much"}}, r"gain: .*found 'much'"),
        ({"colour": {"gain": float("nan")}}, r"gain: .*finite number, found nan"),
        ({"colour": {"gain": float("inf")}}, r"gain: .*finite number, found inf"),
        ({"colour": {"inputs": {"image": "frames"}}}, "no input slot 'image'; known: frames"),
        ({"contrast": {"inputs": {"colour": "frames"}}}, r"contrast needs frames.corner; frames gives pts_s, image"),
        ({"colour": {"keep": ["median"]}}, "cannot keep 'median'; can keep: corner"),
        ({"frames": {"keep": ["image"]}}, "cannot keep 'image'; can keep: nothing more"),
        ({"wave": {"keep": ["samples"]}}, "cannot keep 'samples'; can keep: nothing more"),
        ({"a": {"stage": "contrast", "inputs": {"colour": "a"}}}, "in a loop: a <- a"),
        ({"a": {"stage": "contrast", "inputs": {"colour": "nowhere"}}}, r"nowhere \(needed by a\): no stage"),
    ],
)
def test_a_graph_that_cannot_be_is_refused_by_name(instances, message):
    with pytest.raises(ConfigError, match=message):
        graph(**instances)


def test_a_stage_that_is_not_in_the_config_is_refused():
    with pytest.raises(
        UsageError, match="--stage ghfeat: no such instance or stage in the config; known: frames, colour"
    ):
        select(graph(colour={}), ["ghfeat"])


# ---- the file -------------------------------------------------------------------------------------------------------


def test_overrides_name_a_section_an_instance_or_a_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("extract: {instances: {colour: {gain: 1.0}}}\nfusion: {seed: 1}\n")
    overrides = ["colour.gain=2.5", "extract.instances.colour.dtype=float16", "run.block_rows=16", "fusion.seed=3"]
    config = load_extract_config(str(path), overrides)
    assert config.instances["colour"].stage_fields == {"gain": 2.5, "dtype": "float16"}
    assert config.run.block_rows == 16
    assert load_section(str(path), "fusion", overrides[3:]) == {"seed": 3}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("extrakt: {}", [], "unknown top-level key 'extrakt'; expected extract or fusion"),
        ("[1, 2]", [], "expected the sections extract and fusion, found"),
        ("extract: [", [], "not YAML"),
        ("extract: 3", [], "section extract must be a mapping, found 3"),
        ("extract: {instance: {}}", [], "instance: unknown key; did you mean 'instances'"),
        ("extract: {run: {block_rows: 100}}", [], "100 is not a power of two"),
        ("extract: {instances: {a: {block_rows: 100}}}", [], "100 is not a power of two"),
        ("", ["colour.gain"], r"--set colour.gain: expected a.b=c"),
        ("", ["=1"], r"--set =1: expected a.b=c"),
        ("extract: {run: 3}", ["run.block_rows=2"], r"extract.run is 3, not a section"),
        ("", ["colour.gain=["], "the value is not YAML"),
        ("", ["colour.gain=" + "[" * 5000], "the value is not YAML: .*nested deeper than 100"),
        ("extract: " + "[" * 5000 + "]" * 5000, [], "not YAML: .*nested deeper than 100"),
        ("extract: &e {instances: *e}", [], r"not YAML: .*`\*e` stands within what it names"),
    ],
)
def test_a_bad_config_is_told_by_key(tmp_path, text, overrides, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_extract_config(str(path), overrides)


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ("hubert: {batch: 8}", "instance hubert: batch is for stages that work on rows, stage hubert works on whole"),
        ("roberta: {batch: 8}", "instance roberta: batch is for stages that work on rows"),
        ("frames: {batch: 8}", "instance frames: batch is for stages that work on rows, stage frames is read"),
        ("roberta: {block_rows: 256}", "instance roberta: block_rows is for arrays made row by row"),
        ("roberta: {keep: [token]}", "instance roberta: cannot keep 'token'"),
        ("crop: {precision: float16}", "instance crop: precision is for models that run on a GPU, stage crop always"),
        ("crop: {batch: 24}", "24 is not a power of two"),
        ("crop: {batch: 256}", "less than or equal to 128, found 256"),
    ],
)
def test_a_setting_that_a_stage_cannot_heed_is_refused_by_name(tmp_path, instance, message):
    path = tmp_path / "c.yaml"
    path.write_text(f"extract: {{instances: {{{instance}}}}}")
    with pytest.raises(ConfigError, match=message):
        build_graph(load_extract_config(str(path)))


@pytest.mark.parametrize(
    "instance",
    ["crop: {batch: 8}", "frames: {block_rows: 256}", "hubert: {precision: float32}", "crop: {keep: [image]}"],
)
def test_a_setting_that_a_stage_can_heed_is_taken(tmp_path, instance):
    path = tmp_path / "c.yaml"
    path.write_text(f"extract: {{instances: {{{instance}}}}}")
    assert build_graph(load_extract_config(str(path)))


@pytest.mark.parametrize("name", [".lease", "zarr.json", "a/b", ""])
def test_an_instance_cannot_be_called_what_the_store_needs_itself(tmp_path, name):
    path = tmp_path / "c.yaml"
    path.write_text(f'extract: {{instances: {{"{name}": {{stage: crop}}}}}}')
    with pytest.raises(ConfigError, match="cannot name a folder of the store"):
        build_graph(load_extract_config(str(path)))


def test_a_config_that_is_not_there_is_told_with_the_built_in_ones():
    with pytest.raises(ConfigError, match=r"config nowhere\.yaml: No such file.*built-in configs are code, default"):
        load_extract_config("nowhere.yaml")


def test_the_default_config_is_a_graph():
    assert {"swin", "hubert", "labels"} <= build_graph(load_extract_config(None)).keys()
