import dataclasses
import json
import typing

import pytest
from tiny_study import assert_refused

from cdgrad import attachment, selection
from cdgrad.study import data, models, spec


def test_a_spec_is_read_with_its_types_and_defaults(tiny):
    assert tiny.seeds == (0, 1)
    assert tiny.evaluate == "test"
    assert tiny.setting("", "sgd").optimizer == spec.Optimizer("torch.optim:SGD", 0.1, {"momentum": 0.9})
    assert tiny.arms["sgd"] == spec.Arm()


def test_the_folder_of_the_records_may_be_named(tiny, tiny_text):
    assert tiny.out == "runs/tiny"
    assert spec.parse('out = "elsewhere"\n' + tiny_text, "tiny").out == "elsewhere"


def test_an_arm_changes_only_what_it_names(tiny):
    base, directed = tiny.setting("", "sgd"), tiny.setting("", "directed")
    assert directed.optimizer == spec.Optimizer("torch.optim:SGD", 0.3, {"momentum": 0.9})
    assert (directed.task, directed.model, directed.schedule) == (base.task, base.model, base.schedule)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 1", "epochs = 'ten'", "tiny: schedule.epochs must be an integer of at least 1; got 'ten'"),
        ("epochs = 1", "epochs = true", "schedule.epochs must be an integer of at least 1; got True"),
        ("epochs = 1", "epoch = 1", "unknown key schedule.epoch; did you mean schedule.epochs?"),
        ("train = 48", "", "task.train is missing"),
        ('baseline = "sgd"', "", "baseline is missing; it must be one of the arms: sgd, directed"),
        ('name = "small-cnn"', "", "model.name is missing; it must be one of small-cnn, resnet8"),
        ('name = "torch.optim:SGD"', "", "name is missing; it must be module:callable, such as torch"),
        (
            "train = 48",
            "train = 'most'",
            "task.train must be an integer of at least 1 or \"all\"; got 'most'",
        ),
        ("train = 48", "train = 48\nsize = -1", "task.size must be an integer of at least 0; got -1"),
        (
            "train = 48",
            "train = 48\naugment = ['flip', 'flip']",
            "task.augment must be a list of different ones of pad-crop, flip, cutout; got ['flip', 'flip']",
        ),
        ("train = 48", "train = 48\naugment = 'flip'", "task.augment must be a list"),
        ("lr = 0.1", "lr = -1", "optimizer.lr must be a positive number; got -1.0"),
        ("lr = 0.1", "lr = inf", "optimizer.lr must be a positive number; got inf"),
        ("lr = 0.3", "lr = 0", "arms.directed.optimizer.lr must be a positive number; got 0"),
        (
            "torch.optim:SGD",
            "SGD",
            "optimizer.name must be module:callable, such as torch.optim:SGD; got",
        ),
        ("small-cnn", "resnet", "model.name must be one of small-cnn, resnet8, resnet20"),
        (
            "small-cnn",
            "small_cnn",
            "such as mynet:build; got 'small_cnn'; did you mean small-cnn",
        ),
        ("lr = 0.1", "learning_rate = 0.1", "optimizer.lr is missing; the table has name, learning_rate"),
        ("lam=3", "lam=-3", "arms.directed.metric: lam must be"),
        ("reweighted:", "reweigted:", "did you mean 'reweighted'?"),
        (
            "[arms.directed]",
            "[arms.directed]\nrescale = 'yes'",
            "arms.directed.rescale must be one of none, norm",
        ),
        (
            "[arms.directed]",
            "[arms.directed]\nlinear = 1",
            "arms.directed.linear must be true or false; got 1",
        ),
        ("[arms.directed]", "[arms.'a b']", "arm name 'a b' is not allowed"),
        (
            'baseline = "sgd"',
            'baseline = "adam"',
            "must be one of the arms: sgd, directed; got 'adam'",
        ),
        ("seeds = 2", "seeds = 0", "seeds must be a count of at least 1"),
        ("seeds = 2", "seeds = [1, 1]", "seeds must be a count of at least 1"),
        ("seeds = 2", "seeds = [1, 4294967297]", "seeds must be seeds that differ in their last 32 bits"),
        ("seeds = 2", "seeds = 2\nworker = 3", "unknown key worker; did you mean workers?"),
        ("seeds = 2", "seeds = ", "not valid TOML"),
        (
            "[arms.directed]",
            "[arms.directed]\nvalues.lr = 1",
            "values has no effect without `entry`; use arms.",
        ),
        ("[arms.sgd]", "[arms.sgd]\npermute = true", "arms.sgd.permute has no effect with metric none"),
        ("[arms.sgd]", "[arms.sgd]\nmetric = 'l2'\nrescale = 'norm'", "has no effect with metric l2"),
        (
            "[arms.directed]",
            "[arms.directed]\npermute = true\ndirection = 'width'",
            "arms.directed.permute needs direction output or input, whose axis holds channels; got width",
        ),
        (
            "train = 48",
            "train = 48\nsize = 32",
            'task.size has no effect with data = "fake", which is built in; remove it',
        ),
        ("train = 48", "train = 48\ntest_split = 'test'", "task.test_split has no effect with data"),
        (
            "batch = 16",
            "batch = 16\nstep_factor = 0.5",
            'schedule.step_factor has no effect with decay = "cosine"',
        ),
        ("batch = 16", "batch = 16\nwarmup = 1", "schedule.warmup must be below epochs = 1; got 1"),
        ("batch = 16", "batch = 16\naccumulate = 17", "accumulate must be at most batch = 16; got 17"),
        (
            "batch = 16",
            "batch = 16\nema = 1",
            "schedule.ema must be a number of at least 0 and below 1; got 1",
        ),
        ("batch = 16", "batch = 16\nclip = -1", "schedule.clip must be a number of at least 0; got -1"),
        ("batch = 16", "batch = 16\ndecay = 'step'", "schedule.decay must be one of cosine, steps, none"),
        ("batch = 16", "batch = 16\nprecision = 'half'", "must be one of float32, bfloat16"),
        ("seeds = 2", "seeds = 2\nentry = 'mytrain'", "entry must be module:callable, such as mytrain:run"),
        ("seeds = 2", "seeds = 2\nentry = 'mytrain:run'", "unknown key task; known are"),
    ],
)
def test_an_error_names_the_key_what_came_and_what_is_allowed(tiny_text, old, new, message):
    assert_refused(tiny_text, old, new, message)


def test_the_fingerprint_is_of_what_decides_the_numbers(tiny, tiny_text):
    same = spec.parse(tiny_text.replace("seeds = 2", "seeds = 5\nworkers = 1"), "other")
    changed = spec.parse(tiny_text.replace("momentum = 0.9", "momentum = 0.8"), "tiny")
    for arm in tiny.arms:
        assert tiny.setting("", arm).fingerprint == same.setting("", arm).fingerprint
        assert tiny.setting("", arm).fingerprint != changed.setting("", arm).fingerprint
    assert tiny.setting("", "sgd").fingerprint != tiny.setting("", "directed").fingerprint


def test_a_default_that_is_written_out_changes_nothing(tiny, tiny_text):
    tables = {"[task]": spec.Task, "[model]": spec.Model, "[schedule]": spec.Schedule, "[arms.sgd]": spec.Arm}
    text = tiny_text
    for header, kind in tables.items():
        defaults = {f.name: f.default for f in dataclasses.fields(kind)}
        given = {k: v for k, v in defaults.items() if v is not None and v is not dataclasses.MISSING}
        lines = [f"{key} = {json.dumps(value)}" for key, value in given.items()]
        text = text.replace(
            header, "\n".join([header, *(line for line in lines if line != 'tuning = "own"')])
        )
    written = spec.parse(text.replace("seeds = 2", "seeds = 2\nmargin = 0"), "tiny")
    assert written.setting("", "sgd").fingerprint == tiny.setting("", "sgd").fingerprint
    assert (written.arms, written.margin) == (tiny.arms, tiny.margin)


def test_metrics_are_kept_in_their_normal_form(tiny, tiny_text):
    spelled = spec.parse(tiny_text.replace("reweighted:lam=3", "reweighted: lam=3.0"), "tiny")
    assert spelled.setting("", "directed") == tiny.setting("", "directed")


def test_the_first_difference_names_the_key_and_both_values():
    old, new = (
        {"a": 1, "task": {"train": 300, "data": "digits"}},
        {"a": 1, "task": {"train": 400, "data": "digits"}},
    )
    assert spec.first_difference(old, new) == "task.train was 300 and is 400"
    assert spec.first_difference(old, old) == ""
    assert spec.first_difference({"a": [1]}, {"a": [1.0]}) == "a was [1] and is [1.0]"
    assert spec.first_difference({"a": {"b": 1}}, {"a": {"b": True}}) == "a.b was 1 and is True"


@pytest.mark.parametrize("name", spec.builtin_names())
def test_every_builtin_study_is_valid(name):
    assert spec.load(name).name == name


def test_quickstart_uses_rates_and_a_setting_that_its_tuning_study_tried():
    quickstart, tuning = spec.load("quickstart"), spec.load("quickstart-tuning")
    tried = [tuning.setting("", arm) for arm in tuning.arms]
    assert quickstart.rounding_arms == ["rounded"]
    for arm in {*quickstart.arms} - {*quickstart.rounding_arms}:
        setting = quickstart.setting("", arm)
        assert any(
            (trial.task.train, trial.model, trial.schedule, trial.optimizer, trial.metric)
            == (setting.task.train, setting.model, setting.schedule, setting.optimizer, setting.metric)
            for trial in tried
        )
    assert tuning.evaluate == "validation"
    assert not set(tuning.seeds) & set(quickstart.seeds)


def test_a_missing_file_says_what_is_built_in():
    with pytest.raises(FileNotFoundError, match="built-in quickstart"):
        spec.load("nonesuch")


def test_the_names_a_spec_allows_are_the_names_that_exist():
    # spec.py states them itself, because reading a specification must not import torch.
    assert typing.get_args(selection.Direction) == spec.DIRECTIONS
    assert typing.get_args(attachment.Rescale) == spec.RESCALES
    assert tuple(data.SOURCES) == spec.DATA
    assert tuple(models.BUILTIN) == spec.MODELS
    assert tuple(data.TRANSFORMS) == spec.AUGMENTATIONS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_specification_may_come_from_any_editor(tmp_path, tiny_text, encoding, end):
    file = tmp_path / "tiny.toml"
    file.write_bytes(tiny_text.replace("\n", end).encode(encoding))
    assert spec.load(str(file)).text == tiny_text
