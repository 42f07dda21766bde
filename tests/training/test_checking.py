"""Every key and value of a configuration is checked; each mistake gets one sentence that names the key."""

import pytest

from stcl.errors import SettingError
from stcl.training.checking import check_settings
from stcl.training.config import merge, parse_overrides, set_key


@pytest.fixture
def refused(plain):
    """``refused("--group.key", "value")``: the message about the tiny settings with these changes."""

    def refuse(*words):
        data = merge({}, plain)
        for key, value in parse_overrides(list(words)).items():
            set_key(data, key, value)
        with pytest.raises(SettingError) as caught:
            check_settings(data, "own.yaml")
        message = str(caught.value)
        assert message.startswith("own.yaml")
        assert "\n" not in message
        return message

    return refuse


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # unknown keys
        ("trainig.steps", "3", "own.yaml: Unknown key 'trainig'. Did you mean 'training'? Known: evaluation, flow,"),
        ("training.step", "3", "own.yaml, group training: Unknown key 'step'. Did you mean 'steps'?"),
        ("method.teacher.intervall", "3", "group method.teacher: Unknown key 'intervall'. Did you mean 'interval'?"),
        ("method.optimization.lr", "1", "Unknown key 'lr'. Known: decayed, head_factor, learning_rate,"),
        ("1", "3", "own.yaml: Unknown key '1'."),
        # unknown names
        ("method.name", "slct", "Unknown method.name 'slct'. Known: source_only, tps, dacs, stcl."),
        ("method.name", "[stcl]", "Unknown method.name '['stcl']'."),
        ("source.name", "synthia", "Unknown source.name 'synthia'. Did you mean 'synthia_seq'?"),
        ("target.name", "city", "Unknown target.name 'city'."),
        ("network.backbone", "resnet", "Unknown network.backbone 'resnet'. Did you mean 'resnet50'?"),
        ("network.head", "deeplab", "Unknown network.head 'deeplab'."),
        ("flow.name", "farneback", "Unknown flow.name 'farneback'. Known: dis, raft, files, exact, zero."),
        ("space", "synthia", "Unknown space 'synthia'. Known: synthia_seq-cityscapes_seq,"),
        ("source.split", "val", "Unknown source.split 'val'. Known: train. These are the splits of data set 'synthia_"),
        ("target.split", "trian", "Unknown target.split 'trian'. Did you mean 'train'?"),
        ("evaluation.split", "vla", "Unknown evaluation.split 'vla'. Did you mean 'val'?"),
        # wrong types
        ("training.steps", "many", 'training.steps must be a whole number, found "many".'),
        ("training.steps", "2.5", "training.steps must be a whole number, found 2.5."),
        ("training.steps", "true", "training.steps must be a whole number, found true."),
        ("seed", "null", "seed must be a whole number, found null."),
        ("oracle", "maybe", 'oracle must be true or false, found "maybe".'),
        ("name", "3", "name must be text, found 3. Quotes make it text: \"'3'\"."),
        ("source.size", "64", "source.size must be [a whole number, a whole number] or null, found 64."),
        ("source.size", "[64, 32, 3]", "or null, found [64, 32, 3]."),
        ("source.size", "64x32", 'or null, found "64x32".'),
        ("flow.quality", "best", 'flow.quality must be one of ultrafast, fast, medium, found "best".'),
        ("training.precision", "16-true", "training.precision must be one of 32-true, 16-mixed, bf16-mixed, found"),
        ("training", "5", "training is a group of keys (accelerator, batch_size,"),
        ("source", "null", "source is a group of keys (classes, frames, name, root, size, split), found null."),
        ("source", "camvid", 'source is a group of keys (classes, frames, name, root, size, split), found "camvid".'),
        ("network.backbone_settings", "wide", "network.backbone_settings must be a group of keys or null"),
        ("network.weights", "'builtin: small'", None),
        ("network.weights", "{builtin: small}", 'network.weights must be text or null, found {"builtin": "small"}.'),
        ("method.optimization.learning_rate", "fast", 'learning_rate must be a number, found "fast".'),
        ("method.optimization.learning_rate", ".nan", "learning_rate must be a number, found NaN."),
        ("method.alignment.pairs", "3", "method.alignment.pairs must be at most 2, found 3."),
        ("method.sequence_fusion.rare_classes", "[1]", "must be a list in which each item is text or null, found [1]."),
        ("space", "3", "own.yaml: space must be text, found 3."),
        ("method.lambda_t", "true", "method.lambda_t must be a number, found true."),
        ("method.lambda_t", ".inf", "method.lambda_t must be a number, found Infinity."),
        ("method.alignment.pairs", "true", "method.alignment.pairs must be a whole number, found true."),
        ("method.preparation.rescale", "[1, true]", "rescale must be [a number, a number], found [1, true]."),
        ("method.masking", "3", "own.yaml: method.masking is a group of keys (patch_px, share), found 3."),
        ("flow.quality", "[fast]", "flow.quality must be one of ultrafast, fast, medium, found"),
        # impossible values
        ("seed", "-1", "seed must be at least 0, found -1."),
        ("seed", "9999999999", "seed must be at most 2147483647, found 9999999999."),
        ("training.steps", "0", "training.steps must be at least 1, found 0."),
        ("training.batch_size", "0", "training.batch_size must be at least 1, found 0."),
        ("training.nodes", "99999999999", "training.nodes must be at most 65536, found 99999999999."),
        ("training.devices", "1000000000", "training.devices must be at most 1024, found 1000000000."),
        ("training.devices", "'1_000_000_000'", "training.devices must be at most 1024, found 1000000000."),
        ("source.root", "''", 'source.root holds a text that is empty (null stands for none): "".'),
        ("target.frames", '"list:\\0"', r'target.frames holds a text that has a zero byte: "list:\u0000".'),
        ("method.sequence_fusion.rare_classes", "[road, '']", "rare_classes holds a text that is empty"),
        ("network.head", '"\\ud800"', r"Unknown network.head '\ud800'"),
        ("seed", "0x" + "f" * 5000, "seed must be at most 2147483647, found thousands of digits."),
        ("network.backbone_settings", "{width: 0x" + "f" * 5000 + "}", "holds a number of more than a thousand bits"),
        ("training.workers", "-1", "training.workers must be at least 0, found -1."),
        ("training.log_every", "0", "training.log_every must be at least 1, found 0."),
        ("training.checkpoint_every", "0", "training.checkpoint_every must be at least 1, found 0."),
        ("training.snapshot_every", "0", "training.snapshot_every must be at least 1, found 0."),
        ("training.calibration_clips", "0", "training.calibration_clips must be at least 1, found 0."),
        ("training.gradient_clip", "-1", "training.gradient_clip must be above 0, found -1. Null stands for none."),
        ("training.rare_class_sampling", "0", "rare_class_sampling must be above 0, found 0. Null stands for none."),
        ("evaluation.batch_size", "0", "evaluation.batch_size must be at least 1, found 0."),
        ("evaluation.samples", "-1", "evaluation.samples must be at least 0, found -1."),
        ("source.size", "[60, 32]", "source.size is [60, 32], but width and height must be at least 32 and divisible"),
        ("target.size", "[64, 24]", "divisible by 8. The nearest such size is [64, 32]."),
        ("target.size", "[-64, 32]", "target.size is [-64, 32], but"),
        ("method.preparation.strong.hue", "3", "method.preparation.strong.hue must be at most 0.5, found 3."),
    ],
)
def test_a_wrong_value(refused, plain, key, value, message):
    if message is None:
        data = merge(plain, {})
        set_key(data, key, value)
        assert check_settings(data, "own.yaml").network.weights == value
    else:
        assert message in refused(f"--{key}", value)


@pytest.mark.parametrize("key", ["name", "space", "source.root", "target.name"])
def test_a_missing_key(plain, key):
    data = merge({}, plain)
    group, _, last = key.rpartition(".")
    del (data[group] if group else data)[last]
    with pytest.raises(SettingError, match=rf"own\.yaml: the key {key} is missing: "):
        check_settings(data, "own.yaml")


@pytest.mark.parametrize("method", [None, "stcl", {}, {"lambda_t": 1}])
def test_a_missing_method(plain, method):
    with pytest.raises(SettingError, match=r"the key method\.name is missing\. Say which method to train"):
        check_settings({**plain, "method": method}, "own.yaml")


def test_a_key_of_another_method(refused):
    message = refused("--method.name", "source_only", "--method.lambda_t", "1")
    assert "group method: Unknown key 'lambda_t'. Known: aux_weight," in message


def test_numbers_that_yaml_reads_as_text(plain):
    data = merge(plain, {"method": {"optimization": {"learning_rate": "1e-3"}}, "training": {"gradient_clip": 1}})
    settings = check_settings(data, "own.yaml")
    assert settings.method.optimization.learning_rate == pytest.approx(1e-3)
    assert settings.training.gradient_clip == 1.0


# an oracle, and nobody else, trains on the target's labels


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../{name}", "{}/."])
def test_source_must_not_be_target(refused, streets, spelling):
    root = spelling.format(streets / "target", name="target")
    message = refused("--source.name", "cityscapes_seq", "--source.root", root)
    assert "source and target are the same data set, so training would read target labels" in message
    assert "oracle: true" in message


def test_an_oracle_says_so(plain, streets):
    source = {"name": "cityscapes_seq", "root": str(streets / "target"), "frames": "labelled"}
    assert check_settings(merge(plain, {"source": source, "oracle": True}), "own.yaml").oracle


def test_an_oracle_needs_the_target_data_set(refused):
    message = refused("--oracle", "true")
    assert "source is 'synthia_seq' and target is 'cityscapes_seq'" in message
