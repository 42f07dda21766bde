"""What is true of every method. A new method inherits these tests by being in ``METHODS``.

Methods whose parts are off by default add settings that switch them on to ``VARIANTS``.
"""

import io
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from closeness import assert_close
from stcl.errors import SettingError
from stcl.labels import IGNORE
from stcl.methods import METHODS, AdaptationMethod, Optimization, Preparation, get_method
from stcl.methods.patches import ResizableBuffers
from stcl.methods.settings import Masking, Teacher
from stcl.methods.stcl import Alignment, FeatureFusion, SequenceFusion
from stcl.training.devices import make_fabric
from stcl.training.loop import take_step
from stcl.training.settings import TrainingSettings
from stcl.training.state import Training
from stcl.types import ClipSpec

FULL = Preparation(match_histogram=True, augment_source=True, rescale=(1.0, 1.5))
"""Every preparation at once; never smaller than the target."""

VARIANTS = {
    "stcl": [
        {
            "warmup": 1,
            "teacher": Teacher(kind="frozen", frozen_steps=2),
            "sequence_fusion": SequenceFusion(confidence=0.0, target_patches=True, into_source=True),
            "feature_fusion": FeatureFusion(stage="stage2"),
            "alignment": Alignment(form="contrastive", pairs=2, adaptive=True),
        },
        {"teacher": Teacher(kind="self", interval=2, flow_error=0.2, flow_consistency=True), "weighting": "threshold"},
        {"weighting": "class_share", "masking": Masking(share=0.5, patch_px=8), "alignment": Alignment(form="mmd")},
        {"weighting": "class_threshold", "sequence_fusion": SequenceFusion(during_warmup=True)},
    ],
    "tps": [
        {"teacher": Teacher(kind="frozen", frozen_steps=9, flow_error=0.2, flip=True), "weighting": "none"},
        {"weighting": "class_threshold", "masking": Masking(share=0.5, patch_px=8)},
    ],
    "dacs": [
        {"teacher": Teacher(interval=0), "warmup": 1},
        {
            "teacher": Teacher(kind="frozen", frozen_steps=9, flow_error=0.2),
            "weighting": "class_threshold",
            "masking": Masking(share=0.5, patch_px=8),
        },
    ],
}

CASES = [(name, variant) for name in METHODS for variant in [{}, *VARIANTS.get(name, [])]]
each_case = pytest.mark.parametrize(
    ("name", "settings"), CASES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)]
)
each_method = pytest.mark.parametrize("name", METHODS)


def copies(state):
    """Tensors as they are now, at any depth."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: copies(value) for key, value in state.items()}
    return state


def reread(state):
    """Through a file that is read as data, never as code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- declarations ----


@each_method
def test_it_is_known_by_its_name(name):
    assert get_method(name) is METHODS[name]
    assert issubclass(METHODS[name], AdaptationMethod)
    assert METHODS[name].__doc__


def test_an_unknown_name_lists_the_right_ones():
    with pytest.raises(SettingError, match=r"Did you mean 'stcl'\?.*source_only"):
        get_method("stlc")


@each_case
def test_it_never_asks_for_target_labels(make_method, name, settings):
    method = make_method(name, preparation=FULL, **settings)
    assert isinstance(method.source_spec, ClipSpec) and 0 in method.source_spec.labels
    assert method.target_spec is None or method.target_spec.labels == ()
    if method.target_spec is not None:
        assert method.target_spec.frames[0] == 0  # whose colours the source takes


@each_method
def test_a_method_that_pastes_wants_a_source_as_large_as_the_target(make_method, make_batch, make_run, name):
    """It says so of itself; the others train on any two sizes."""
    method = make_method(name)
    data = make_batch(method, source_size=(24, 48))
    if not method.pastes:
        assert torch.isfinite(make_run(method).losses(data)["source"])
        return
    with pytest.raises(SettingError, match="smaller than the target's 64x32 px, so patches cannot be pasted"):
        make_run(method).losses(data)


@each_method
def test_the_source_teaches_its_frame_t(make_method, make_batch, make_run, name):
    method = make_method(name)
    run, data = make_run(method), make_batch(method)
    source = data["source"]

    def term(hidden):
        ignored = torch.tensor([offset in hidden for offset in source.offsets])[:, None, None]
        data["source"] = replace(source, labels=source.labels.masked_fill(ignored, IGNORE))
        torch.manual_seed(0)  # of the dropout
        return run.losses(data)["source"]

    assert term([0]) == 0 < term([])
    assert term([-1]) == term([])


@each_case
@pytest.mark.parametrize("batch", [1, 2])
def test_what_it_declares_is_all_that_it_needs(make_method, make_batch, make_run, name, settings, batch):
    """Clips have the declared frames, flows and source labels and nothing else; every loss is finite."""
    method = make_method(name, preparation=FULL, **settings)
    run = make_run(method)
    for step in range(3):
        data = make_batch(method, batch, seed=step)
        assert "target" not in data or data["target"].labels is None
        logged = run.step(data)
        assert all(torch.isfinite(torch.tensor(value)) for value in logged.values()), logged
        parts = [value for key, value in logged.items() if key.startswith("loss/") and key != "loss/total"]
        assert parts
        assert_close(sum(parts), logged["loss/total"])


@each_case
def test_networks_eat_values_from_0_to_1(make_method, make_batch, make_run, name, settings):
    """Colour matching and strong augmentation work on images in their value range: nothing wraps around."""
    method = make_method(name, preparation=FULL, **settings)
    seen = []

    def look(_, inputs):
        seen.append(inputs[0])

    for module in method.modules():
        if hasattr(module, "backbone"):
            module.backbone.register_forward_pre_hook(look)
    run = make_run(method)
    for step in range(2):
        run.step(make_batch(method, seed=step))
    assert seen
    for image in seen:
        assert image.dtype == torch.float32
        assert image.min() >= 0 and 0.5 < image.max() <= 1


# ---- training ----


@each_case
def test_a_step_trains_every_part(make_method, make_batch, make_run, name, settings):
    method = make_method(name, **settings)
    run = make_run(method)
    before = copies(dict(method.network.named_parameters()))
    run.step(make_batch(method))
    roles = method.network.parameter_roles()
    assert all(any(parameter.grad.any() for parameter in group) for group in roles.values())
    after = dict(method.network.named_parameters())
    assert all(not torch.equal(before[key], after[key]) for key in before if after[key].requires_grad)


@each_case
def test_what_a_step_moves_beside_its_weights_can_be_put_back(make_method, make_batch, make_run, name, settings):
    """Statistics, counts, histograms and flags: after a step that does not count nothing but clips are remembered."""
    method = make_method(name, **settings)
    run = make_run(method)
    before, kept = copies(method.state_dict()), [buffer.clone() for buffer in method.moving_statistics()]
    run.step(make_batch(method))
    moved = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    for buffer, value in zip(method.moving_statistics(), kept, strict=True):
        buffer.copy_(value)
    left = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    learned = {f"network.{key}" for key, _ in method.network.named_parameters()}
    clips = {part for part, module in method.named_modules() if isinstance(module, ResizableBuffers)}
    others = {key for key in left - learned if key.rpartition(".")[0] not in clips}
    # the averages are those of weights that did not move then
    assert {key for key in others if not key.startswith(("average.", "start."))} == set()
    assert moved - left


@each_case
def test_what_is_evaluated_is_the_average_of_the_steps(make_method, make_batch, make_run, name, settings):
    method = make_method(name, ema_momentum=0.99, **settings)
    run = make_run(method)
    states = []
    for step in range(3):
        run.step(make_batch(method, seed=step))
        states.append(copies(dict(method.network.named_parameters())))
    assert method.evaluated is not method.network
    for key, value in method.evaluated.named_parameters():
        # while the average is young it is the plain mean of all steps
        assert_close(value, torch.stack([state[key] for state in states]).mean(0), where=key)
        assert not value.requires_grad and value.grad is None


@each_case
def test_the_seed_and_the_step_determine_everything(make_method, make_batch, make_run, name, settings):
    """Equal seeds give equal losses whatever the global random state, dropout included; another seed does not."""

    def losses(seed, noise):
        method = make_method(name, seed=seed, preparation=FULL, **settings)
        run = make_run(method)
        logged = []
        for step in range(2):
            torch.manual_seed(noise)
            logged.append(run.step(make_batch(method, seed=step)))
        return logged

    assert losses(3, noise=0) == losses(3, noise=1)
    assert losses(3, noise=0) != losses(4, noise=0)


@each_method
def test_each_step_has_its_own_draws(make_method, make_batch, make_run, name):
    method = make_method(name, preparation=FULL)
    run, seen = make_run(method), []
    for _ in range(2):
        seen.append(method.prepare_batch(make_batch(method), method.step_generator())[0].frames)
        run.method.step += 1
    assert seen[0].shape != seen[1].shape or not torch.equal(*seen)


@each_case
@pytest.mark.parametrize("batch", [1, 2])
def test_resumed_equals_uninterrupted(make_method, make_batch, make_run, name, settings, batch):
    """Weights, averages, teachers, prototypes, memories and draws all come back: the next losses are equal."""
    preparation = Preparation(match_histogram=True, augment_source=True)
    method = make_method(name, preparation=preparation, **settings)
    run = make_run(method)
    for step in range(2):
        run.step(make_batch(method, batch, seed=step))
    parts = {"method": method, "optimizer": run.optimizer, "schedule": run.schedule}
    stored = reread({key: copies(part.state_dict()) for key, part in parts.items()})
    expected = [run.step(make_batch(method, batch, seed=step)) for step in range(2, 5)]

    other = make_method(name, start=1, preparation=preparation, **settings)
    resumed = make_run(other, step=2)
    other.load_state_dict(stored["method"])
    resumed.optimizer.load_state_dict(stored["optimizer"])
    resumed.schedule.load_state_dict(stored["schedule"])
    assert [resumed.step(make_batch(other, batch, seed=step)) for step in range(2, 5)] == expected
    assert all(torch.equal(a, b) for a, b in zip(method.parameters(), other.parameters(), strict=True))


@each_method
def test_the_loop_does_what_the_steps_here_do(make_method, make_batch, make_run, name):
    """The other tests take steps without the loop; both ways end at the same weights and the same average."""
    ours, theirs = make_method(name), make_method(name)
    data = [make_batch(ours, seed=step) for step in range(3)]
    run = make_run(ours, steps=3)
    for batch in data:
        run.step(batch)
    options = TrainingSettings(steps=3, accelerator="cpu")
    training = Training(make_fabric(options), theirs, SimpleNamespace(training=options))
    training.start()
    for batch in data:
        take_step(training, batch)
    assert not training.reports.read()
    assert (theirs.step, training.reports.skipped) == (3, [])
    assert_close(training.reports.loss, run.logged["loss/total"])
    assert {name: float(value) for name, value in theirs.logged.items()} == run.logged
    expected = ours.state_dict()
    for key, value in theirs.state_dict().items():
        assert_close(value, expected[key], where=key)


# ---- settings that nothing reads ----


def watched(settings, seen, where):
    """A copy of a settings object that notes in ``seen`` which of its fields are read."""
    names = {field.name for field in fields(settings)}

    class Watched(type(settings)):
        def __getattribute__(self, name):
            if name in names:
                seen.add(f"{where}.{name}")
            return super().__getattribute__(name)

    copy = object.__new__(Watched)
    for name in names:
        value = getattr(settings, name)
        value = watched(value, seen, f"{where}.{name}") if is_dataclass(value) else value
        object.__setattr__(copy, name, value)
    return copy


def field_names(settings, where):
    for field in fields(settings):
        value = getattr(settings, field.name)
        yield f"{where}.{field.name}"
        if is_dataclass(value):
            yield from field_names(value, f"{where}.{field.name}")


@each_method
def test_every_field_of_its_settings_is_read(make_method, make_batch, make_run, name):
    """Over all variants, training reads each field of each group of settings."""
    seen: set[str] = set()
    for optimizer in ("sgd", "adamw"):
        for variant in [{}, *VARIANTS.get(name, [])]:
            given = variant | {"optimization": Optimization(optimizer=optimizer), "preparation": FULL}
            settings = watched(METHODS[name].Settings(**given), seen, "method")
            model = make_method(name)
            method = METHODS[name](model.network, model.space, 0, settings)
            make_run(method, step=5).step(make_batch(method))
    assert set(field_names(METHODS[name].Settings(), "method")) - seen == set(), "read by nothing"


def test_the_watch_sees_a_field_that_nothing_reads():
    seen: set[str] = set()
    settings = watched(Preparation(), seen, "preparation")
    assert settings.strong.hue == Preparation().strong.hue
    assert seen == {"preparation.strong", "preparation.strong.hue"}
    assert isinstance(settings, Preparation)
