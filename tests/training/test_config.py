"""Configurations as files: inheritance, overrides, and what is refused."""

from functools import cache

import pytest

from stcl import resources
from stcl.errors import SettingError
from stcl.models.weights.names import list_pretrained
from stcl.protocols import PROTOCOLS
from stcl.training.config import load_settings, merge, parse_overrides, read_yaml, set_key
from stcl.training.networks import resolve_weights
from stcl.training.settings import Settings

SHIPPED = [name for name in resources.list_configs() if "name" in read_yaml(resources.config_path(name))["method"]]
BASES = sorted(set(resources.list_configs()) - set(SHIPPED))

WHOLE = """
name: own
space: twinstreets-camvid
source: {name: synthia_seq, root: a}
target: {name: camvid, root: b}
evaluation: {split: test}
method: {name: stcl}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="own.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def same(one: Settings, other: Settings) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in Settings.__dataclass_fields__ if name != "text")


# shipped configurations


BY_A_TPS_NETWORK = [name for name in SHIPPED if name.endswith(("_seq/stcl_published", "-vit/stcl_published"))]
"""The published recipe is given the file of a trained network."""


@cache
def shipped(name: str) -> Settings:
    weights = ["--network.weights=tps.pth"] if name in BY_A_TPS_NETWORK else []
    return load_settings(resources.config_path(name), weights)


@pytest.mark.parametrize("weights", [None, "null", "pretrained:imagenet"])
@pytest.mark.parametrize("name", BY_A_TPS_NETWORK)
def test_the_published_recipe_does_not_train_on_labels_of_a_random_head(name, weights):
    given = [] if weights is None else [f"--network.weights={weights}"]
    with pytest.raises(SettingError, match=r"network\.weights is .* its heads would be random.*--network\.weights tps"):
        load_settings(resources.config_path(name), given)
    for way in ("--method.warmup=4000", "--method.teacher.kind=ema", "--method.teacher.frozen_steps=0"):
        assert load_settings(resources.config_path(name), [*given, way])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "method.threshold 96.8",
            "method.threshold must be below 1, found 96.8. Is it a percentage. As a",
        ),
        ("method.threshold 1", "method.threshold must be below 1, found 1"),
        ("method.kept_share 50", "As a share it is 0.5"),
        ("method.lambda_t -1", "method.lambda_t must be at least 0, found -1"),
        ("method.warmup -1", "method.warmup must be at least 0"),
        ("method.aux_weight -0.1", "method.aux_weight must be at least 0"),
        ("method.aux_weight 0", "leaves the auxiliary head untrained: set network.auxiliary: false"),
        ("method.ema_momentum 1", "method.ema_momentum must be below 1"),
        ("method.masking.share 1.5", "masking.share must be at most 1, found 1.5"),
        ("method.masking.patch_px 0", "masking.patch_px must be at least 1"),
        ("method.sequence_fusion.confidence 90", "sequence_fusion.confidence must be .* As a share it is 0.9"),
        ("method.feature_fusion.source_share 30", "feature_fusion.source_share must be .* As a share it is 0.3"),
        ("method.feature_fusion.start 20", "feature_fusion.start must be .* As a share it is 0.2"),
        ("method.feature_fusion.stage stage2", "stage2 does nothing unless the same patches go into both domains"),
        ("method.teacher.frozen_steps -5", "teacher.frozen_steps must be at least 0, found -5"),
        ("method.optimization.momentum 1", "optimization.momentum must be below 1"),
        ("method.preparation.rescale [2,1]", r"rescale is a range above 0, the smaller number first, not \[2.0, 1.0\]"),
        ("method.preparation.crop [60,32]", r"preparation.crop is \[60, 32\], but .* divisible by 8.*is \[64, 32\]"),
        ("method.preparation.fourier_beta 0.5", "preparation.fourier_beta must be below 0.5"),
        ("method.preparation.strong.blur_kernels_px [4]", r"blur_kernels_px takes odd numbers of at least 1"),
        ("method.preparation.strong.jitter_probability 80", "As a share it is 0.8"),
        ("method.sequence_fusion.close_up_zoom [0,2]", "sequence_fusion.close_up_zoom is a range above 0"),
        ("method.sequence_fusion.random_classes -1", "sequence_fusion.random_classes must be at least 0"),
        ("method.sequence_fusion.long_tail_patches -1", "sequence_fusion.long_tail_patches must be at least 0"),
        ("method.sequence_fusion.close_ups -1", "sequence_fusion.close_ups must be at least 0"),
        ("method.sequence_fusion.bank_slots 0", "sequence_fusion.bank_slots must be at least 1"),
        ("method.teacher.interval -1", "teacher.interval must be at least 0, found -1"),
        ("method.teacher.flow_error 10", "teacher.flow_error must be at most 1"),
        ("method.alignment.temperature 0", "alignment.temperature must be above 0, found 0"),
        ("method.alignment.weight -1", "alignment.weight must be at least 0"),
        ("method.alignment.minimum_pixels 0", "alignment.minimum_pixels must be at least 1"),
    ],
)
def test_numbers_that_would_train_something_else_are_refused_when_they_are_read(words, message):
    key, value = words.split()
    with pytest.raises(SettingError, match=message):
        load_settings(resources.config_path("twinstreets/stcl"), [f"--{key}={value}"])


@pytest.mark.parametrize(
    ("missing", "kept"),
    [("into_source", {"into_target": True}), ("into_target", {"into_source": True}), ("any patch", None)],
)
def test_features_are_fused_where_both_domains_have_patches(missing, kept):
    both = {"into_source": True, "into_target": True}
    none = {"source_patches": False, "long_tail_patches": 0, "close_ups": 0}
    fusion = {**both, **none} if kept is None else {**dict.fromkeys(both, False), **kept}
    for setting, works in ((fusion, False), ({**fusion, **both, "close_ups": 1}, True)):
        words = [f"--method.sequence_fusion.{key}={str(value).lower()}" for key, value in setting.items()]
        words += ["--method.feature_fusion.stage=stage2"]
        if works:
            assert load_settings(resources.config_path("twinstreets/stcl"), words)
        else:
            with pytest.raises(SettingError, match="does nothing unless the same patches go into both domains"):
                load_settings(resources.config_path("twinstreets/stcl"), words)


def test_feature_level_fusion_needs_the_domains_apart():
    words = [f"--method.{key}=true" for key in ("shared_statistics", "sequence_fusion.into_source")]
    with pytest.raises(SettingError, match=r"set method\.shared_statistics to false"):
        load_settings(resources.config_path("twinstreets/stcl"), [*words, "--method.feature_fusion.stage=stage2"])


@pytest.mark.parametrize("words", ["name=raft quality=medium", "model=small", "name=zero folder=flows"])
def test_settings_of_another_source_of_flow_are_refused(words):
    given = [f"--flow.{word}" for word in words.split()]
    with pytest.raises(
        SettingError, match=r"^command line: flow\.\w+ \w+ is for '\w+', but flow\.name is '.*Take it out"
    ):
        load_settings(resources.config_path("twinstreets/stcl"), given)


def test_three_recipes_are_published():
    assert len(BY_A_TPS_NETWORK) == 3


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_loads(name):
    settings = shipped(name)
    assert settings.title
    assert settings.oracle == ("oracle" in name)


@pytest.mark.parametrize("name", BASES)
def test_every_shipped_base_states_known_keys(name):
    assert load_settings(resources.config_path(name), ["--method.name", "source_only"]).method_class


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_exist(name):
    if not resources.list_weights():
        pytest.skip("no weights come with this install yet")
    settings = shipped(name)
    weights = None if name in BY_A_TPS_NETWORK else settings.network.weights
    if weights is not None and weights.startswith("pretrained:"):  # not in the package
        assert weights.removeprefix("pretrained:") in list_pretrained(settings.network.backbone)
    else:
        assert weights is None or resolve_weights(weights).is_file()


def test_the_compared_runs_have_one_network_start_and_schedule():
    """Same network, start, schedule, resolution."""
    for folder in ("twinstreets", "twinstreets-camvid"):
        methods = ("source_only", "strong_source_only", "stcl", "oracle")
        runs = [shipped(f"{folder}/{name}") for name in methods]
        for run in runs:
            assert (run.network, run.training, run.target) == (runs[0].network, runs[0].training, runs[0].target)
            assert run.method.optimization == runs[0].method.optimization
            assert run.source.size == runs[0].source.size
        strong, adapted = runs[1].method, runs[2].method
        for shared in ("preparation", "evaluation_statistics", "ema_momentum", "aux_weight"):
            assert getattr(strong, shared) == getattr(adapted, shared)


@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith("own/")])
def test_published_benchmarks_are_measured_by_their_protocol(name):
    """Source and target are those of the protocol; an oracle trains on the target."""
    settings, protocol = shipped(name), PROTOCOLS[shipped(name).space.name]
    rendered = name.startswith("twinstreets/")
    if not rendered:
        assert settings.target.name == protocol.target
        assert settings.source.name == (protocol.target if settings.oracle else protocol.source)
    if "viper" in name:
        assert (settings.source.frames, settings.source.size) == ("published", (1280, 720))


# the resolved configuration


@pytest.mark.parametrize("name", SHIPPED)
def test_the_dump_loads_to_the_same_settings(name, write):
    settings = shipped(name)
    again = load_settings(write(settings.dump()))
    assert same(settings, again)
    assert again.dump() == settings.dump()


def test_the_dump_states_nulls_and_defaults(write):
    """A part that is switched off by null must still be off when the run's own configuration is read."""
    settings = load_settings(write(WHOLE), ["--method.alignment.form", "null", "--training.gradient_clip", "null"])
    dumped = settings.as_dict()
    assert dumped["method"]["alignment"]["form"] is None
    assert dumped["training"]["gradient_clip"] is None
    assert dumped["method"]["lambda_t"] == 1.0
    assert load_settings(write(settings.dump(), "run.yaml")).method.alignment.form is None


# inheritance


def test_a_file_lies_over_its_base(write):
    write(WHOLE + "training: {steps: 7, workers: 0}", "base.yaml")
    settings = load_settings(write("base: base.yaml\nname: child\ntraining: {steps: 9}"))
    assert (settings.name, settings.training.steps, settings.training.workers) == ("child", 9, 0)


def test_three_layers_and_a_shipped_base(write):
    write("base: twinstreets/stcl\ntraining: {steps: 3}", "middle.yaml")
    settings = load_settings(write("base: middle.yaml\nseed: 4"))
    assert (settings.seed, settings.training.steps) == (4, 3)
    assert settings.network == load_settings(resources.config_path("twinstreets/stcl")).network


def test_merge_leaves_its_arguments_alone():
    below, above = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(below, above) == {"a": {"b": 1, "c": 2}}
    assert (below, above) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nope.yaml", r"own\.yaml: base: there is no file .*nope\.yaml.*Known: .*twinstreets/stcl"),
        ("base: own.yaml", r"circle: .*own\.yaml -> .*own\.yaml\. Take one base out"),
        ("base: other.yaml", r"other\.yaml: base: .*circle: .*own\.yaml -> .*other\.yaml -> .*own\.yaml"),
        ("a: [1,\nb: }", r"own\.yaml is not valid YAML: line 2, column 4: expected the node content, but found '}'"),
        ("name: a\nname: b", r"own\.yaml is not valid YAML: line 2, column 1: key 'name' stands twice"),
        ("!!python/object/apply:os.system ['true']", r"not valid YAML: line 1.*could not determine a constructor"),
        ("- a\n- b", r"own\.yaml holds no settings"),
        ("", r"own\.yaml holds no settings"),
        ("\udcff", r"own\.yaml is not a text file \(invalid start byte at byte 0\)"),
        (WHOLE + "training.steps: 3", r"'training\.steps' has a dot.*Write groups: training: \{steps: \.\.\.\}"),
    ],
)
def test_files_that_cannot_be_read(write, tmp_path, text, message):
    (tmp_path / "other.yaml").write_text("base: own.yaml")
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingError, match=message):
        load_settings(path)


def test_no_file(tmp_path):
    with pytest.raises(SettingError, match=r"There is no configuration file .*own\.yaml"):
        load_settings(tmp_path / "own.yaml")


def test_the_message_names_the_file_that_a_key_stands_in(write):
    write(WHOLE + "training: {stpes: 7}", "base.yaml")
    with pytest.raises(
        SettingError, match=r"^.*base\.yaml, group training: Unknown key 'stpes'\. Did you mean 'steps'"
    ):
        load_settings(write("base: base.yaml\nseed: 1"))
    with pytest.raises(SettingError, match=r"^command line, group training: Unknown key 'step'"):
        load_settings(write(WHOLE), ["--training.step", "7"])


# overrides


def test_overrides_are_yaml():
    words = ["--a.b", "3", "--c=[1, 2]", "--d", "null", "--e=x=y", "--f", "{g: true}", "--h", "-1"]
    assert parse_overrides(words) == {"a.b": 3, "c": [1, 2], "d": None, "e": "x=y", "f": {"g": True}, "h": -1}


def test_an_override_makes_groups_and_is_laid_over_them():
    data = {"a": {"b": 1}, "n": None}
    set_key(data, "a", {"c": 2})
    set_key(data, "n.width", 8)
    set_key(data, "x.y.z", 3)
    assert data == {"a": {"b": 1, "c": 2}, "n": {"width": 8}, "x": {"y": {"z": 3}}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed"], "override --seed has no value"),
        (["--seed", "--training.steps", "3"], "override --seed has no value"),
        (["seed", "3"], "'seed' is not an override. Overrides look like --training.steps 1000"),
        (["-x", "3"], "'-x' is not an override"),
        (["--seed", "[1,"], r"value of --seed, '\[1,', is not valid YAML: line 1, column 4"),
        (["--name.first", "x"], "override --name.first goes into 'name', which holds 'own' and no keys"),
        (["--seed.x", "3"], r"command line: seed must be a whole number, found \{\"x\": 3\}"),
    ],
)
def test_overrides_that_cannot_be_read(write, words, message):
    with pytest.raises(SettingError, match=message):
        load_settings(write(WHOLE), words)


# presets


PUBLISHED = "synthia_seq-cityscapes_seq/stcl"


def fitted(name: str, *overrides: str, config: str = PUBLISHED) -> Settings:
    return load_settings(resources.config_path(config), list(overrides), name)


@pytest.mark.parametrize("name", resources.list_presets())
def test_a_preset_states_what_memory_depends_on_and_nothing_else(name):
    layer = read_yaml(resources.preset_path(name))
    assert set(layer.pop("training")) == {"batch_size", "precision", "gradient_checkpointing"}
    assert layer in ({}, {"method": {"preparation": layer.get("method", {}).get("preparation")}})
    assert set(layer.get("method", {}).get("preparation", {})) <= {"crop"}
    plain, settings = fitted(None), fitted(name)  # type: ignore[arg-type]
    assert settings.network == plain.network and settings.source == plain.source
    assert settings.method.preparation.match_histogram == plain.method.preparation.match_histogram


def test_presets_are_listed_by_size_and_are_no_configurations():
    assert resources.list_presets() == ["8gb", "16gb", "24gb", "80gb"]
    assert not [name for name in resources.list_configs() if "gb" in name]
    with pytest.raises(
        SettingError, match=r"Unknown preset '9gb'\. Did you mean '8gb'\? Known: 8gb, 16gb, 24gb, 80gb\.$"
    ):
        fitted("9gb")
    with pytest.raises(SettingError, match="Unknown configuration 'presets/8gb'"):
        resources.config_path("presets/8gb")


def test_a_preset_lies_between_the_configuration_and_the_overrides():
    assert fitted("8gb").training.precision == "bf16-mixed"
    settings = fitted("8gb", "--training.precision", "16-mixed")
    assert (settings.training.precision, settings.training.gradient_checkpointing) == ("16-mixed", True)
    assert settings.training.steps == fitted("16gb").training.steps == 40_000


@pytest.fixture
def own_preset(write, tmp_path, monkeypatch):
    """``own_preset(text, *overrides)``: settings under a preset ``8gb`` with this text; all clips are 640x320."""
    path = write(WHOLE + "training: {workers: 0}\n")
    (tmp_path / "presets").mkdir()
    monkeypatch.setattr(resources, "config_folder", lambda: tmp_path)

    def load(text: str, *overrides: str) -> Settings:
        write(text, "presets/8gb.yaml")
        sizes = ["--source.size", "[640, 320]", "--target.size", "[640, 320]"]
        return load_settings(path, [*sizes, *overrides], "8gb")

    return load


@pytest.mark.parametrize(
    ("overrides", "crop"),
    [
        ((), (512, 256)),
        (("--target.size", "[512, 256]"), (512, 256)),  # cuts the source alone
        (("--target.size", "[384, 192]"), (384, 192)),
        (("--source.size", "[512, 256]", "--target.size", "[512, 256]"), None),
        (("--source.size", "[256, 128]", "--target.size", "[256, 128]"), None),
        (("--source.size", "null", "--target.size", "[384, 192]"), (384, 192)),
        (("--method.preparation.crop", "[128, 64]"), (128, 64)),
        (("--method.preparation.crop", "null"), None),
    ],
)
def test_a_presets_crop_is_an_upper_bound(own_preset, overrides, crop):
    settings = own_preset("method: {preparation: {crop: [512, 256]}}", *overrides)
    assert settings.method.preparation.crop == crop
    assert settings.training.workers == 0


def test_a_message_names_the_preset(own_preset):
    with pytest.raises(SettingError, match=r"^.*8gb\.yaml, group training: Unknown key 'batchsize'"):
        own_preset("training: {batchsize: 1}")
    with pytest.raises(SettingError, match=r"^command line, group training: Unknown key 'step'"):
        own_preset("training: {batch_size: 1}", "--training.step", "7")
