"""Real runs of the frameworks' trainers, with the code of the docs: each equals the plain loop's weights."""

import contextlib
import copy
import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from documents import ROOT, blocks
from torch import nn
from torch.nn import functional

import cdgrad
from cdgrad.callbacks import attached


@pytest.fixture(scope="module")
def example(request, tmp_path_factory):
    """The names that a page's code leaves behind; it imports the framework, for seconds."""
    namespace = {"__name__": request.param}
    with contextlib.chdir(tmp_path_factory.mktemp("example")):
        for block in blocks(ROOT / "docs" / f"{request.param}.md"):
            assert block.language == "python"
            exec(compile(block.code, request.param, "exec"), namespace)
    return SimpleNamespace(**namespace)


def plain_loop(
    loss_of, model, optimizer, batches, *, direct, micro=1, mean=True, clip=0.0, clip_first=True, scaler=None
):
    """Written out: backward, clip, direct, step; `direct` is a metric, and None leaves gradients ordinary."""
    for start in range(0, len(batches), micro):
        optimizer.zero_grad()
        for batch in batches[start : start + micro]:
            loss = loss_of(model, batch) / (micro if mean else 1)
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
        if clip and clip_first:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        kernels = [p.grad for p in model.parameters() if p.ndim == 4]
        if direct:
            cdgrad.channel_directed_(kernels, direct, dims=0)
        if clip and not clip_first:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return weights(model)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Lightning ---------------------------------------------------------------------------------------------

SOBOLEV = "sobolev:lam=0.01"
lightning_example = pytest.mark.parametrize("example", ["lightning"], indirect=True)


def fitted(example, kind, epochs=5, **options):
    torch.manual_seed(0)
    module = kind()
    example.lightning.Trainer(max_epochs=epochs, **example.quiet, **options).fit(module, example.batches)
    return weights(module)


def looped(example, epochs=5, autocast=None, **options):
    torch.manual_seed(0)
    module = example.Classifier()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

    def loss_of(model, batch):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            return functional.cross_entropy(model.network(batch[0]), batch[1])

    return plain_loop(loss_of, module, optimizer, list(example.batches) * epochs, **options)


@lightning_example
def test_lightning_steps_with_a_closure_and_equals_the_plain_loop_after_20_steps(example):
    assert torch.equal(fitted(example, example.Classifier), looped(example, direct=SOBOLEV))


@lightning_example
def test_a_naive_hook_does_nothing_in_lightning(example):
    """The expected difference: it directs what the closure throws away, and training is the ordinary one."""

    class Naive(example.Classifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
            optimizer.register_step_pre_hook(self.direct)
            return optimizer

        def direct(self, optimizer, args, kwargs):
            grads = [p.grad for p in self.parameters() if p.ndim == 4 and p.grad is not None]
            cdgrad.channel_directed_(grads, SOBOLEV, dims=0)

    naive = fitted(example, Naive)
    assert not torch.equal(naive, looped(example, direct=SOBOLEV))
    assert torch.equal(naive, looped(example, direct=None))


@lightning_example
@pytest.mark.parametrize(
    ("kind", "trainer", "loop"),
    [
        ("Manual", {}, {}),
        ("Classifier", {"accumulate_grad_batches": 2}, {"micro": 2}),
        ("Classifier", {"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ("Clipped", {"gradient_clip_val": 0.1}, {"clip": 0.1, "clip_first": False}),
        ("Classifier", {"precision": "bf16-mixed"}, {"autocast": torch.bfloat16}),
        ("Manual", {"precision": "bf16-mixed"}, {"autocast": torch.bfloat16}),
    ],
)
def test_lightning_options(example, kind, trainer, loop):
    ours = fitted(example, getattr(example, kind), **trainer)
    assert torch.equal(ours, looped(example, direct=SOBOLEV, **loop))


@lightning_example
@pytest.mark.parametrize("kind", ["Classifier", "Manual"])
def test_lightning_with_16_bit_mixed_precision_and_a_scaler(example, kind):
    """Lightning turns precision="16-mixed" into bfloat16 on a CPU; its plugin does not."""
    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    ours = fitted(example, getattr(example, kind), plugins=[plugin])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert torch.equal(ours, looped(example, direct=SOBOLEV, autocast=torch.float16, scaler=scaler))


@lightning_example
def test_lightnings_wrapper_is_refused_with_the_optimizer_to_attach_to(example):
    from lightning.pytorch.core.optimizer import LightningOptimizer

    module = example.Classifier()
    wrapper = LightningOptimizer(torch.optim.SGD(module.parameters()))
    with pytest.raises(ValueError, match=r"attach to the one inside: attach\(optimizer\.optimizer, \.\.\.\)"):
        cdgrad.attach(wrapper, module, SOBOLEV)
    cdgrad.attach(wrapper.optimizer, module, SOBOLEV)


# Hugging Face ------------------------------------------------------------------------------------------

huggingface_example = pytest.mark.parametrize("example", ["huggingface"], indirect=True)


def stacked(items):
    pixels = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": pixels, "labels": torch.tensor([item["labels"] for item in items])}


def resnet(example):
    torch.manual_seed(0)
    return example.ResNetForImageClassification(example.config).train()


def batches_of(example, steps, size=4):
    pages = [stacked(example.data[i : i + size]) for i in range(0, len(example.data), size)]
    return [pages[step % len(pages)] for step in range(steps)]


def in_order(trainer):
    """Trainer shuffles; its option for the order came with transformers 5.2 and had no effect before."""
    return torch.utils.data.DataLoader(trainer.train_dataset, batch_size=4, collate_fn=stacked)


def loss_of(model, batch):
    return model(**batch).loss


@huggingface_example
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("own_optimizer", [True, False])
def test_trainer(example, accumulate, own_optimizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example.Trainer, "get_train_dataloader", in_order)
    arguments = copy.copy(example.arguments)
    arguments.max_grad_norm = 0.1
    arguments.gradient_accumulation_steps = accumulate
    arguments.lr_scheduler_type = "constant"
    arguments.learning_rate = 1e-3
    arguments.max_steps = 4
    model, manual = resnet(example), resnet(example)
    if own_optimizer:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        cdgrad.attach(optimizer, model, SOBOLEV)
        trainer = example.Trainer(model, arguments, train_dataset=example.data, optimizers=(optimizer, None))
        manual_optimizer = torch.optim.AdamW(manual.parameters(), lr=1e-3)
    else:
        trainer = example.Directed(model, arguments, train_dataset=example.data)
        manual_optimizer = example.Trainer(manual, arguments).create_optimizer()
    trainer.train()
    batches = batches_of(example, 4 * accumulate)
    # Trainer leaves the mean over micro-batches to a model whose forward takes **kwargs, as this one's does.
    options = {"direct": SOBOLEV, "micro": accumulate, "mean": False, "clip": 0.1}
    expected = plain_loop(loss_of, manual, manual_optimizer, batches, **options)
    torch.testing.assert_close(weights(model), expected, rtol=0, atol=0)


@huggingface_example
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("prepared_first", [False, True])
def test_accelerate(example, precision, prepared_first):
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = example.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    model, manual = resnet(example), resnet(example)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if not prepared_first:
        cdgrad.attach(optimizer, model, SOBOLEV)
    prepared, stepper = accelerator.prepare(model, optimizer)
    if prepared_first:
        with pytest.raises(
            ValueError, match=r"attach to the one inside: attach\(optimizer\.optimizer, \.\.\.\)"
        ):
            cdgrad.attach(stepper, model, SOBOLEV)
        cdgrad.attach(stepper.optimizer, model, SOBOLEV)
    batches = batches_of(example, 6)
    for batch in batches:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), 0.1)
            stepper.step()
            stepper.zero_grad()

    def loss_in_precision(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return loss_of(model, batch)

    manual_optimizer = torch.optim.SGD(manual.parameters(), lr=0.05)
    options = {"direct": SOBOLEV, "micro": 2, "clip": 0.1}
    expected = plain_loop(loss_in_precision, manual, manual_optimizer, batches, **options)
    torch.testing.assert_close(weights(model), expected, rtol=0, atol=0)


# torch.compile -------------------------------------------------------------------------------------------


# Tracing an optimizer loads what torch itself still scripts.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("what", ["model", "step", "whole"])
def test_compiled_training_steps(what):
    """The model, the optimizer's step, or both with the backward pass in between."""

    def run(directed, compiled):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if directed:
            cdgrad.attach(optimizer, model, SOBOLEV)

        def wrap(function, part):
            return torch.compile(function, backend="aot_eager") if compiled and part == what else function

        forward, step = wrap(model, "model"), wrap(optimizer.step, "step")

        def whole(x, y):
            optimizer.zero_grad()
            functional.cross_entropy(forward(x), y).backward()
            step()

        whole = wrap(whole, "whole")
        for x in torch.randn(3, 6, 2, 6, 6, generator=torch.Generator().manual_seed(0)):
            whole(x, torch.arange(6) % 3)
        return weights(model)

    expected = run(directed=True, compiled=False)
    assert not torch.equal(expected, run(directed=False, compiled=False))
    torch.testing.assert_close(run(directed=True, compiled=True), expected, rtol=1e-5, atol=1e-6)


# Callbacks ---------------------------------------------------------------------------------------------


class Plain:
    """The module of the example without its own attachment."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def plain_module(example):
    torch.manual_seed(0)
    return type("PlainClassifier", (Plain, example.Classifier), {})()


@lightning_example
@pytest.mark.parametrize(("clip", "options"), [(False, {}), (True, {"gradient_clip_val": 0.1})])
def test_the_lightning_callback_gives_the_weights_of_the_loop(example, clip, options):
    module = plain_module(example)
    callback = cdgrad.lightning.ChannelDirected(SOBOLEV, clip=clip)
    example.lightning.Trainer(max_epochs=5, callbacks=[callback], **example.quiet, **options).fit(
        module, example.batches
    )
    loop = {"clip": 0.1, "clip_first": False} if clip else {}
    assert torch.equal(weights(module), looped(example, direct=SOBOLEV, **loop))
    assert not callback.handles


@lightning_example
def test_the_lightning_callback_resumes_its_schedule_and_logs(example, tmp_path):
    def fit(epochs, logged=None, **kwargs):
        module = plain_module(example)
        callback = cdgrad.lightning.ChannelDirected(
            SOBOLEV, schedule=lambda step: 0.01 * (step + 1), statistics=1
        )
        trainer = example.lightning.Trainer(max_epochs=epochs, callbacks=[callback], **example.quiet)
        trainer.fit(module, example.batches, **kwargs)
        return module, trainer

    whole, trainer = fit(4)
    assert 0 < trainer.callback_metrics["cdgrad/network.0.weight/norm_ratio"] < 1
    _, first = fit(2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(4, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(resumed), weights(whole))


@lightning_example
def test_the_lightning_callback_detaches_where_training_ends_by_an_error(example):
    class Fails(Plain, example.Classifier):
        fails = True

        def configure_optimizers(self):
            return optimizer

        def on_train_batch_start(self, batch, index):
            if self.fails and index == 2:
                raise KeyError("no such batch")

    module, callback = Fails(), cdgrad.lightning.ChannelDirected(SOBOLEV)
    optimizer = Plain.configure_optimizers(module)

    def fit():
        trainer = example.lightning.Trainer(max_epochs=1, callbacks=[callback], **example.quiet)
        trainer.fit(module, example.batches)

    with pytest.raises(KeyError):
        fit()
    assert not callback.handles
    module.fails = False
    fit()
    assert callback.state_dict()["handles"][0]["steps"] == 2 + len(example.batches)


@lightning_example
def test_weights_that_are_frozen_at_first_are_directed_once_an_optimizer_holds_them(example):
    class Unfrozen(example.Classifier):
        def configure_optimizers(self):
            self.network[0].requires_grad_(False)
            return torch.optim.SGD(self.network[3].parameters(), lr=0.05, momentum=0.9)

        def on_train_epoch_start(self):
            if self.current_epoch == self.unfrozen_at:
                self.network[0].requires_grad_(True)
                self.optimizers().optimizer.add_param_group({"params": self.network[0].parameters()})

    def fit(unfrozen_at):
        torch.manual_seed(0)
        module, callback = Unfrozen(), cdgrad.lightning.ChannelDirected(SOBOLEV)
        module.unfrozen_at = unfrozen_at
        example.lightning.Trainer(max_epochs=3, callbacks=[callback], **example.quiet).fit(
            module, example.batches
        )
        return module

    torch.manual_seed(0)
    module = example.Classifier()
    optimizer = torch.optim.SGD(module.network[3].parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        if epoch == 1:
            optimizer.add_param_group({"params": module.network[0].parameters()})
        for images, labels in example.batches:
            module.zero_grad()
            functional.cross_entropy(module.network(images), labels).backward()
            cdgrad.channel_directed_([module.network[0].weight.grad], SOBOLEV)
            optimizer.step()
    assert torch.equal(weights(fit(1)), weights(module))
    with pytest.warns(UserWarning, match="no gradient was directed: all selected weights were frozen"):
        fit(9)


@lightning_example
def test_clip_with_manual_optimization_is_refused_with_what_to_call(example):
    module = type("Manual", (Plain, example.Manual), {})()
    with pytest.raises(
        ValueError, match=r"clip=True .* Manual with manual .* call handle\.apply\(\) for each"
    ):
        example.lightning.Trainer(
            max_epochs=1, callbacks=[cdgrad.lightning.ChannelDirected(SOBOLEV, clip=True)], **example.quiet
        ).fit(module, example.batches)


def forget_accelerator():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@huggingface_example
def test_the_trainer_callback_gives_the_weights_of_the_recipe_twice_over_and_logs(example, tmp_path):
    forget_accelerator()
    arguments = copy.copy(example.arguments)
    arguments.output_dir = str(tmp_path)
    arguments.logging_steps = 1
    trained = []
    for how in ("recipe", "callback"):
        torch.manual_seed(0)
        model = resnet(example)
        callback = cdgrad.huggingface.ChannelDirected(SOBOLEV, statistics=1)
        if how == "callback":
            trainer = example.Trainer(model, arguments, train_dataset=example.data, callbacks=[callback])
        else:
            trainer = example.Directed(model, arguments, train_dataset=example.data)
        trainer.train()
        trainer.train()
        trained.append(weights(model))
    assert torch.equal(*trained)
    assert callback.handle is None
    assert any("cdgrad/cosine" in entry for entry in trainer.state.log_history)


def test_resuming_in_another_metric_than_the_callbacks_is_warned_of():
    model = nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"metric": "sobolev:lam=0.02", "steps": 5, "enabled": True}
    with pytest.warns(UserWarning, match=r"resumes in sobolev:lam=0\.02, .* not in sobolev:lam=0\.01"):
        handle = attached(optimizer, model, SOBOLEV, {}, None, state)
    assert handle.state_dict() == state
    handle.remove()
    assert attached(optimizer, model, SOBOLEV, {}, lambda step: 0.01 * step, state).steps == 5


def test_a_state_that_a_callback_cannot_take_leaves_nothing_attached():
    model = nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = {"metric": SOBOLEV, "steps": -1, "enabled": True}
    for schedule, error in ((None, ValueError), (3, TypeError)):
        with pytest.raises(error, match="expected a function" if schedule else "a number of steps"):
            attached(optimizer, model, SOBOLEV, {}, schedule, {**state, "steps": 5 if schedule else -1})
    cdgrad.attach(optimizer, model, SOBOLEV)


@lightning_example
def test_a_state_that_the_lightning_callback_cannot_take_is_kept(example):
    """With two optimizers: neither stays attached, and a later attempt has both states."""
    model = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)])
    trainer = SimpleNamespace(optimizers=[torch.optim.SGD(part.parameters(), lr=0.1) for part in model])
    callback = cdgrad.lightning.ChannelDirected(SOBOLEV)
    states = [{"metric": SOBOLEV, "enabled": True, "steps": steps} for steps in (5, -1)]
    callback.load_state_dict({"handles": states})
    with pytest.raises(ValueError, match="a number of steps"):
        callback._attach(trainer, model)
    callback.on_exception(trainer, model, ValueError())
    assert callback.state_dict()["handles"] == states
    states[1]["steps"] = 6
    callback._attach(trainer, model)
    assert [handle.steps for handle in callback.handles] == [5, 6]


def test_lightning_under_its_older_name(monkeypatch):
    older = pytest.importorskip("pytorch_lightning")
    monkeypatch.setattr(cdgrad, "lightning", importlib.import_module("cdgrad.lightning"))
    monkeypatch.delitem(sys.modules, "cdgrad.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "pytorch_lightning")
    assert issubclass(importlib.import_module("cdgrad.lightning").ChannelDirected, older.Callback)


@lightning_example
def test_two_lightning_callbacks_save_a_state_each(example):
    callbacks = [cdgrad.lightning.ChannelDirected(SOBOLEV, **kind) for kind in ({}, {"linear": True})]
    assert [callback.state_key for callback in callbacks] == [
        "ChannelDirected",
        "ChannelDirected {'linear': True}",
    ]
    example.lightning.Trainer(callbacks=callbacks, **example.quiet)


@huggingface_example
def test_two_trainer_callbacks_save_a_state_each(example, tmp_path):
    forget_accelerator()
    arguments = copy.copy(example.arguments)
    arguments.output_dir, arguments.max_steps = str(tmp_path), 1
    names = [name for name, param in resnet(example).named_parameters() if param.ndim == 4][:2]
    callbacks = [cdgrad.huggingface.ChannelDirected(SOBOLEV, include=name) for name in names]
    trainer = example.Trainer(resnet(example), arguments, train_dataset=example.data, callbacks=callbacks)
    trainer.train()
    saved = trainer.state.stateful_callbacks
    assert [saved[f"cdgrad {{'include': '{name}'}}"]["steps"] for name in names] == [1, 1]


@huggingface_example
def test_reporters_see_the_statistics_where_they_are_listed_after_the_callback(
    example, tmp_path, monkeypatch
):
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

    seen = []

    class Reporter(TensorBoardCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append("cdgrad/cosine" in logs)

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Reporter)
    for listed in (True, False):
        forget_accelerator()
        arguments = copy.copy(example.arguments)
        arguments.output_dir, arguments.logging_steps, arguments.max_steps = str(tmp_path), 1, 1
        arguments.report_to = [] if listed else ["tensorboard"]
        callbacks = [cdgrad.huggingface.ChannelDirected(SOBOLEV, statistics=1), *[Reporter()] * listed]
        trainer = example.Trainer(resnet(example), arguments, train_dataset=example.data, callbacks=callbacks)
        with contextlib.nullcontext() if listed else pytest.warns(UserWarning, match="tensorboard.* before"):
            trainer.train()
        assert seen[0] == listed
        seen.clear()


@huggingface_example
def test_the_trainer_callback_resumes_its_schedule(example, tmp_path):
    forget_accelerator()
    arguments = copy.copy(example.arguments)
    arguments.output_dir, arguments.max_steps = str(tmp_path), 4
    arguments.save_strategy, arguments.save_steps = "steps", 2

    def train(**kwargs):
        seen = []

        def lam(step):
            seen.append(step)
            return 0.01 * (step + 1)

        torch.manual_seed(0)
        model = resnet(example)
        callback = cdgrad.huggingface.ChannelDirected(SOBOLEV, schedule=lam)
        trainer = example.Trainer(model, arguments, train_dataset=example.data, callbacks=[callback])
        trainer.train(**kwargs)
        return weights(model), seen

    whole, steps = train()
    assert steps[-1] == 3
    moved = (tmp_path / "checkpoint-2").rename(tmp_path / "elsewhere")
    for options in ({}, {"restore_callback_states_from_checkpoint": True}):
        for name, value in options.items():
            setattr(arguments, name, value)
        resumed, steps = train(resume_from_checkpoint=str(moved))
        assert steps[-2:] == [2, 3]
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
