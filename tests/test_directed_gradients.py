"""What counts as directed already, whatever happens between the backward pass and the update."""

import gc
import re
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn

import cdgrad
from cdgrad import attach, channel_directed, directed_gradients

METRIC = "reweighted:lam=3"
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def convolution(kind=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 8, 3)
    optimizer = kind(model.parameters(), lr=1.0)
    return model, optimizer, attach(optimizer, model, METRIC, **options)


def backward(model, zero=False):
    if zero:
        model.zero_grad(set_to_none=False)
    model(IMAGES).square().mean().backward()
    return model.weight.grad.clone()


def moved_by(optimizer, weight):
    before = weight.detach().clone()
    optimizer.step()
    return before - weight.detach()


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def clamp(grad):
    return grad.clamp(-0.01, 0.01)


def test_a_gradient_exchanged_after_apply_is_directed_once():
    model, optimizer, handle = convolution()
    g = backward(model)
    handle.apply()
    model.weight.grad = clamp(model.weight.grad)
    assert_close(moved_by(optimizer, model.weight), clamp(channel_directed(g, METRIC)))


class FailsOnce(torch.optim.SGD):
    failing = False

    def step(self, closure=None):
        if self.failing:
            self.failing = False
            raise RuntimeError("out of memory")
        return super().step(closure)


@pytest.mark.parametrize("new_gradient", ["backward", "by hand"])
def test_the_step_after_one_that_failed_directs(new_gradient):
    model, optimizer, _ = convolution(FailsOnce)
    backward(model)
    optimizer.failing = True
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    if new_gradient == "backward":
        g = backward(model, zero=True)
    else:
        model.weight.grad.copy_(g := torch.randn_like(model.weight))
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


def test_a_step_repeated_after_it_failed_does_not_direct_twice():
    model, optimizer, _ = convolution(FailsOnce)
    g = backward(model)
    optimizer.failing = True
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


def test_a_step_skipped_after_apply_leaves_the_next_one_right_in_the_same_memory():
    model, optimizer, handle = convolution()
    backward(model)
    handle.apply()
    g = backward(model, zero=True)
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


class ClampsThenSteps(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = clamp(param.grad)
        return super().step(closure)


class StepsTwice(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        return super().step()


def test_a_gradient_exchanged_between_a_step_and_its_parents_is_directed_once():
    torch.optim.SGD([torch.zeros(1)])
    model, optimizer, _ = convolution(ClampsThenSteps)
    g = backward(model)
    assert_close(moved_by(optimizer, model.weight), clamp(channel_directed(g, METRIC)))


def test_a_step_that_steps_its_parent_twice_directs_once():
    torch.optim.SGD([torch.zeros(1)])
    model, optimizer, handle = convolution(StepsTwice)
    g = backward(model)
    assert_close(moved_by(optimizer, model.weight), 2 * channel_directed(g, METRIC))
    assert handle.steps == 1


class Communicating(torch.optim.SGD):
    """Writes what it reduced elsewhere inside its step, in place or as a new tensor."""

    reduced, in_place = None, True

    @torch.no_grad()
    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            if param.ndim == 4:
                if self.in_place:
                    param.grad.copy_(self.reduced)
                else:
                    param.grad = self.reduced.clone()
            param.add_(param.grad, alpha=-1.0)


@pytest.mark.parametrize("in_place", [True, False])
def test_an_optimizer_whose_step_overwrites_the_directed_gradient_is_noticed(in_place):
    model, optimizer, handle = convolution(Communicating)
    optimizer.in_place = in_place
    optimizer.reduced = backward(model)
    handle.enabled = False
    optimizer.step()  # which answers nothing: the next is watched as well
    handle.enabled = True
    optimizer.reduced = backward(model, zero=True)
    with pytest.raises(
        RuntimeError, match=r"Communicating\.step replaced the directed gradient of weight by"
    ):
        optimizer.step()
    model, optimizer, _ = convolution(Communicating)
    optimizer.in_place = in_place
    optimizer.reduced = backward(model) + torch.randn_like(model.weight)
    with pytest.warns(
        UserWarning, match=r"Communicating\.step, .* wrote the gradient of weight.*handle\.apply"
    ):
        optimizer.step()


class CommunicatingWithMomentum(Communicating):
    """Adds Nesterov's momentum to the gradient in place, as torch's SGD does on lists of tensors."""

    @torch.no_grad()
    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            buffer = self.state[param].setdefault("momentum_buffer", torch.randn_like(param))
            if param.ndim == 4:
                param.grad.copy_(self.reduced)
            param.grad.add_(buffer.mul_(0.9).add_(param.grad), alpha=0.9)


def test_momentum_from_before_attach_is_told_from_an_exchanged_gradient():
    """With `foreach`, the default on a GPU, the step of SGD writes the gradient."""
    model = nn.Conv2d(3, 8, 3, bias=False)
    for kind, reduced in ((torch.optim.SGD, None), (CommunicatingWithMomentum, "ordinary")):
        optimizer = kind(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
        for attached in (False, True):
            optimizer.reduced = backward(model)
            if attached:
                attach(optimizer, model, METRIC)
            if attached and reduced:
                with pytest.raises(RuntimeError, match=r"replaced the directed gradient of weight by"):
                    optimizer.step()
            else:
                optimizer.step()


class KeepsState(torch.optim.SGD):
    """Writes what it reduced, or decays the gradient, beside any state."""

    kept, reduced = None, None

    @torch.no_grad()
    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            if self.reduced is not None:
                param.grad.copy_(self.reduced)
            param.grad.add_(param, alpha=0.01)


@pytest.mark.parametrize(
    "kept",
    [
        torch.zeros(8, 3, 3, 3),
        [torch.zeros(8, 3, 3, 3)],
        {"step": 3, "infinite": torch.full((8, 3, 3, 3), torch.inf)},
        {
            "elsewhere": torch.zeros(8, 3, 3, 3, device="meta"),
            "complex": torch.zeros(8, 3, 3, 3, dtype=torch.cfloat),
        },
        {"sparse": torch.zeros(8, 3, 3, 3).to_sparse(), "whole": torch.zeros(8, 3, 3, 3, dtype=torch.int64)},
    ],
)
def test_any_state_of_an_optimizer_is_taken(kept):
    model = nn.Conv2d(3, 8, 3, bias=False)
    optimizer = KeepsState(model.parameters(), lr=0.1)
    optimizer.state[model.weight] = kept
    attach(optimizer, model, METRIC)
    backward(model)
    optimizer.step()


def test_a_state_that_holds_the_ordinary_gradient_hides_no_exchange():
    model = nn.Conv2d(3, 8, 3, bias=False)
    optimizer = KeepsState(model.parameters(), lr=0.1)
    attach(optimizer, model, METRIC)
    optimizer.reduced = backward(model)
    optimizer.state[model.weight]["reduced"] = optimizer.reduced
    with pytest.raises(RuntimeError, match=r"replaced the directed gradient of weight by"):
        optimizer.step()


class Horovod(torch.optim.SGD):
    def synchronize(self):
        pass

    def skip_synchronize(self):
        pass


def test_an_optimizer_that_synchronizes_inside_its_step_is_refused():
    with pytest.raises(ValueError, match=r"Horovod writes .* inside its step.*optimizer\.synchronize\(\)"):
        convolution(Horovod)


class ClearsGradients(torch.optim.SGD):
    """As HeavyBall's optimizers do by default."""

    def step(self, closure=None):
        super().step(closure)
        self.zero_grad(set_to_none=True)


def test_an_optimizer_that_clears_gradients_in_its_step():
    model, optimizer, handle = convolution(ClearsGradients)
    for _ in range(2):
        g = backward(model)
        assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))
        assert model.weight.grad is None
    assert handle.steps == 2


def test_a_weight_exchanged_in_its_group_is_noticed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer, model, METRIC)
    model[1] = nn.Conv2d(8, 6, 3)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    model(IMAGES).square().mean().backward()
    with pytest.warns(UserWarning, match="SGD holds 2 parameters .* not directed"):
        optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_equal_parameter_in_place_of_another_is_noticed(size, groups):
    """Lists of parameters are equal if their items are the same, or of one element and of equal value."""
    model = nn.Conv2d(3, 8, 3, bias=False)
    model.scale = nn.Parameter(torch.ones(size))
    sets = [[model.weight, model.scale]] if groups == 1 else [[model.weight], [model.scale]]
    optimizer = torch.optim.SGD([{"params": params} for params in sets], lr=0.1)
    attach(optimizer, model, METRIC)
    for place, count in ((model.scale, 0), (nn.Parameter(torch.ones(size)), 1)):
        optimizer.param_groups[-1]["params"][-1] = place
        model.weight.grad = torch.randn_like(model.weight)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        assert len(caught) == count
    assert re.match(rf"SGD holds 1 parameters \({size}\) .* not directed", str(caught[0].message))


@pytest.mark.parametrize("beside", [True, False])
def test_lazy_layers_are_selected_in_the_first_step(beside):
    model = nn.Sequential(nn.Conv2d(3, 8, 3) if beside else nn.Identity(), nn.LazyConv2d(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(optimizer, model, METRIC)
    optimizer.step()  # with no gradient yet
    for _ in range(2):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        g = model[1].weight.grad.clone()
        assert_close(moved_by(optimizer, model[1].weight), channel_directed(g, METRIC))
    assert "1.weight" in [target.name for target in handle.selection.targets]


def test_masking_after_apply_keeps_pruned_weights_at_zero():
    model, optimizer, handle = convolution()
    mask = (torch.rand_like(model.weight) > 0.5).float()
    model.weight.data.mul_(mask)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        handle.apply()
        model.weight.grad.mul_(mask)
        optimizer.step()
    assert not model.weight[mask == 0].any()


def test_a_removed_handle_keeps_neither_optimizer_nor_weights():
    model, optimizer, handle = convolution()
    backward(model)
    optimizer.step()
    text = str(handle)
    handle.remove()
    assert str(handle) == text.replace(" on SGD", " on SGD, not attached")
    gone = weakref.ref(optimizer), weakref.ref(model.weight)
    del model, optimizer
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert not handle.selection.targets
    with pytest.raises(RuntimeError, match="the SGD of this handle no longer exists; attach to another"):
        _ = handle.optimizer


def test_attachments_leave_no_hook_on_parameters():
    model, optimizer, handle = convolution()
    handle.remove()
    del optimizer, handle
    attach(torch.optim.SGD(model.parameters()), model, METRIC)
    gc.collect()
    assert not model.weight._post_accumulate_grad_hooks


def test_two_threads_in_one_optimizers_step_are_told():
    class Waits(torch.optim.SGD):
        def step(self, closure=None):
            entered.set()
            leave.wait(30)
            return super().step(closure)

    entered, leave = threading.Event(), threading.Event()
    model, optimizer, _ = convolution(Waits)
    backward(model)
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    entered.wait(30)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"Waits\.step is running in another thread"):
            optimizer.step()
    leave.set()
    thread.join()
    g = backward(model, zero=True)
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))  # from this thread, later


def test_what_is_attached_inside_a_wrapper_is_said_to_be():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model, optimizer, _ = convolution()
    with pytest.raises(ValueError, match=r"already attached: optimizer\.optimizer, .*keep its handle"):
        attach(Wrapper(optimizer), model, METRIC)


def test_scripted_modules_say_what_to_pass():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    scripted = torch.jit.script(model)
    optimizer = torch.optim.SGD(scripted.parameters(), lr=1.0)
    with pytest.warns(UserWarning, match=r"nothing to direct.*the module that torch\.jit\.script was given"):
        cdgrad.select(scripted)
    attach(optimizer, model, METRIC)
    scripted(IMAGES).square().mean().backward()
    g = model[0].weight.grad.clone()
    assert_close(moved_by(optimizer, model[0].weight), channel_directed(g, METRIC))


def test_traced_modules_are_attached_like_any():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    assert [target.name for target in cdgrad.select(model).targets] == ["0.weight"]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(x, self.kernel)


def test_a_kernel_for_a_functional_convolution_is_named_in_blocks():
    model = Functional()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.warns(UserWarning, match="nothing to direct"):
        assert "blocks={'kernel': 1} processes it" in cdgrad.select(model).skipped[0].reason
    with pytest.raises(ValueError, match=r"kernel \(Functional: no known input axis\)"):
        cdgrad.select(model, blocks={"kernel": 1}, direction="input")
    attach(optimizer, model, METRIC, blocks={"kernel": 1})
    model(IMAGES).square().mean().backward()
    g = model.kernel.grad.clone()
    assert_close(moved_by(optimizer, model.kernel), channel_directed(g, METRIC))


def test_patterns_that_match_nothing_that_can_be_processed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(
        ValueError, match=r"include pattern '3\.\*' matches only .*3\.weight \(Linear: off by"
    ):
        cdgrad.select(model, include=["0.*", "3.*"])
    with pytest.raises(ValueError, match=r"blocks pattern '1\.\*' matches only parameters that cannot"):
        cdgrad.select(model, blocks={"1.*": 2})


def hooked(model):
    return bool(model.weight._post_accumulate_grad_hooks)


def test_backward_passes_are_watched_only_where_one_can_come_between():
    """Hooks on parameters cost time in every backward pass, and torch's own steps run none."""
    model, optimizer, handle = convolution()
    backward(model)
    optimizer.step()
    assert not hooked(model)
    handle.apply()
    assert hooked(model)
    model, optimizer, handle = convolution(ClampsThenSteps)
    backward(model)
    optimizer.step()
    assert hooked(model)
    model, optimizer, handle = convolution()
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: None)
    backward(model)
    optimizer.step()
    assert hooked(model)


def test_a_gradient_accumulated_after_apply_is_directed_again():
    model, optimizer, handle = convolution()
    g = backward(model)
    handle.apply()
    backward(model)
    assert_close(moved_by(optimizer, model.weight), channel_directed(channel_directed(g, METRIC) + g, METRIC))


def test_a_backward_pass_after_apply_concerns_the_gradients_that_it_wrote():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(optimizer, model, METRIC)
    grads = [backward(layer) for layer in model]
    handle.apply()
    grads[1] = backward(model[1])
    before = [layer.weight.detach().clone() for layer in model]
    optimizer.step()
    for layer, weight, g in zip(model, before, grads, strict=True):
        assert_close(weight - layer.weight.detach(), channel_directed(g, METRIC))


def test_a_backward_pass_in_the_pre_hook_of_another_is_noticed():
    model, optimizer, _ = convolution()

    def recompute(optimizer, args, kwargs):
        with torch.enable_grad():
            backward(model)

    optimizer.register_step_pre_hook(recompute)
    backward(model)
    with pytest.raises(RuntimeError, match=r"SGD recomputed the gradient of weight inside step\(\)"):
        optimizer.step()


def test_gradients_that_begin_to_overlap_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    attach(optimizer, model, METRIC)
    for apart in (216, 100):
        memory = torch.randn(500)
        for layer, start in zip(model, (0, apart), strict=True):
            layer.weight.grad = memory[start : start + 216].view(8, 3, 3, 3)
        before = memory.clone()
        if apart == 216:
            optimizer.step()
            assert not torch.equal(memory, before)
    with pytest.raises(ValueError, match=r"gradient of 0\.weight and the gradient of 1\.weight overlap"):
        optimizer.step()
    assert torch.equal(memory, before)


def test_backward_passes_without_a_step_are_remembered_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(directed_gradients, "_MOST_WRITTEN", 10)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(optimizer, model, METRIC)
    g = torch.ones_like(model[0].weight)
    model[0].weight.grad = g.clone().mul_(torch.randn_like(g))
    handle.apply()
    directed = model[0].weight.grad.clone()
    for _ in range(30):
        model[1](torch.randn(1, 4, 5, 5)).sum().backward()
    assert len(handle._gradients.memory._written) == 30  # the first parameter's hook, which would drop some
    model(IMAGES).square().mean().backward()
    assert len(handle._gradients.memory._written) == 2
    model[0].weight.grad = directed.clone()
    whole = model[0].weight.grad.clone()
    assert_close(moved_by(optimizer, model[0].weight), channel_directed(whole, METRIC))


@pytest.mark.parametrize("change", ["shape", "strides", "dtype", "sparse", "none"])
def test_gradients_of_another_form_are_prepared_anew(change):
    model, optimizer, _ = convolution()
    for turn in range(2):
        g = backward(model, zero=turn == 1)
        if turn and change == "strides":
            model.weight.grad = g.to(memory_format=torch.channels_last)
        elif turn and change == "none":
            model.weight.grad = None
            optimizer.step()
            continue
        elif turn and change == "dtype":
            model.double()
            model.weight.grad = g.double()
        elif turn and change == "shape":
            model.weight.data = torch.randn(5, 3, 3, 3)
            model.weight.grad = None
            model.weight.grad, g = g[:5].clone(), g[:5]
        elif turn and change == "sparse":
            model.weight.grad = g.to_sparse()
            with pytest.raises(TypeError, match=r"the gradient of weight has layout torch\.sparse_coo"):
                optimizer.step()
            return
        moved = moved_by(optimizer, model.weight)
        assert_close(moved, channel_directed(g, METRIC).to(moved.dtype))


def test_a_gradient_made_in_inference_mode_is_directed_once():
    """Its writes are not counted."""
    model, optimizer, handle = convolution()
    for apply in (False, True):
        with torch.inference_mode():
            model.weight.grad = torch.randn_like(model.weight)
        g = model.weight.grad.clone()
        if apply:
            handle.apply()
        assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


@pytest.mark.parametrize("after", ["step", "apply", "remove"])
def test_module_to_may_swap_the_contents_of_gradients(after):
    """torch swaps nothing that is weakly referred to; the program may ask for it at any time."""
    model, optimizer, handle = convolution()
    g = backward(model)
    optimizer.step() if after == "step" else handle.apply()
    if after == "remove":
        handle.remove()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(memory_format=torch.channels_last)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    if after == "apply":
        assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))
    if after != "remove":
        g = backward(model, zero=True)
        assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


def test_a_second_model_of_the_optimizer_is_not_called_new_once_it_is_attached():
    first, optimizer, handle = convolution()
    second = nn.Conv2d(3, 6, 3)
    optimizer.add_param_group({"params": second.parameters()})
    attach(optimizer, second, "sobolev:lam=0.1")
    backward(first)
    g = backward(second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(moved_by(optimizer, second.weight), channel_directed(g, "sobolev:lam=0.1"))
    assert "new since attach" not in str(handle)


def test_a_step_replaced_in_one_optimizer_is_warned_of_and_apply_is_the_remedy():
    model = nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    @torch.no_grad()
    def own_step():
        model.weight.sub_(model.weight.grad)

    optimizer.step = own_step
    with pytest.warns(UserWarning, match=r"SGD\.step was replaced .*own_step.*call handle\.apply\(\) before"):
        handle = attach(optimizer, model, METRIC)
    for _ in range(2):
        g = backward(model, zero=True)
        handle.apply()
        assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


def test_a_step_that_was_wrapped_by_torch_is_not_warned_of():
    def compiled(optimizer):
        optimizer.step = torch.compile(optimizer.step)

    model = nn.Conv2d(3, 8, 3)
    for wrap in (lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1), compiled):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wrap(optimizer)
            attach(optimizer, model, METRIC)
        assert not [warning for warning in caught if "was replaced" in str(warning.message)]


@pytest.mark.parametrize("between", ["nothing", "copied", "assigned", "written in inference mode"])
def test_apply_again_directs_only_what_was_written_since(between):
    model, optimizer, handle = convolution()
    g = backward(model)
    if between == "written in inference mode":
        with torch.inference_mode():
            model.weight.grad = torch.zeros_like(g)
    handle.apply()
    if between == "assigned":
        model.weight.grad = (g := torch.randn_like(g)).clone()
    elif between != "nothing":
        with torch.inference_mode(between != "copied"):
            model.weight.grad.copy_(g := torch.randn_like(g))
    handle.apply()
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


def test_apply_in_a_hook_that_runs_after_that_of_the_attachment():
    model, optimizer, handle = convolution()
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: handle.apply())
    g = backward(model)
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


def test_a_lazy_layer_of_one_channel_is_left_alone_with_its_reason():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyConv2d(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(optimizer, model, METRIC)
    assert re.search(r"1\.weight +not materialized", str(handle))
    model(IMAGES).square().mean().backward()
    g = model[0].weight.grad.clone()
    assert_close(moved_by(optimizer, model[0].weight), channel_directed(g, METRIC))
    assert re.search(r"1\.weight +one output entry: nothing to smooth", str(handle))


class LineSearch(torch.optim.Optimizer):
    """Halves its step until the loss falls, by evaluations without a backward pass."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        params, rate = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        with torch.enable_grad():
            loss = closure()
        for p in params:
            p.sub_(p.grad, alpha=rate)
        while closure(backward=False) > loss:
            rate /= 2
            for p in params:
                p.add_(p.grad, alpha=rate)


def test_a_step_may_pass_arguments_to_its_closure():
    models = [nn.Conv2d(3, 8, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        optimizer = LineSearch(model.parameters(), lr=64.0)
        attached = model is models[0] and attach(optimizer, model, METRIC)

        def closure(backward=True, model=model, attached=attached):
            with torch.set_grad_enabled(backward):
                loss = model(IMAGES).square().mean()
            if backward:
                model.zero_grad()
                loss.backward()
                if not attached:
                    model.weight.grad = channel_directed(model.weight.grad, METRIC)
            return loss.item()

        for _ in range(3):
            optimizer.step(closure)
    assert_close(models[0].weight, models[1].weight)


def test_a_module_that_a_step_takes_is_no_closure():
    class TakesModel(torch.optim.SGD):
        @torch.no_grad()
        def step(self, model):
            model.weight.sub_(model.weight.grad)

    model, optimizer, _ = convolution(TakesModel)
    g, before = backward(model), model.weight.detach().clone()
    optimizer.step(model)
    assert_close(before - model.weight, channel_directed(g, METRIC))


def test_an_interrupt_in_the_hook_after_a_step_leaves_the_next_one_right(monkeypatch):
    model, optimizer, _ = convolution()
    backward(model)

    def interrupted(self):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(directed_gradients.DirectedGradients, "end_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    g = backward(model, zero=True)
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))


@pytest.mark.parametrize("change", ["clipped", "exchanged"])
def test_a_step_repeated_after_it_failed_takes_what_was_changed_after_apply(change):
    model, optimizer, handle = convolution(FailsOnce)
    g = backward(model)
    handle.apply()
    if change == "clipped":
        model.weight.grad.clamp_(-0.01, 0.01)
    else:
        model.weight.grad = clamp(model.weight.grad)
    optimizer.failing = True
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert_close(moved_by(optimizer, model.weight), clamp(channel_directed(g, METRIC)))


@pytest.mark.parametrize("between", ["nothing", "clipped", "backward", "backward after attach"])
def test_a_gradient_that_a_removed_attachment_directed_is_directed_once(between):
    model, optimizer, handle = convolution()
    want = channel_directed(backward(model), METRIC)
    handle.apply()
    if between == "clipped":
        model.weight.grad.clamp_(-0.01, 0.01)
        want = clamp(want)
    handle.remove()
    if between == "backward":
        want = channel_directed(backward(model, zero=True), METRIC)
    attach(optimizer, model, METRIC)
    if between == "backward after attach":
        want = channel_directed(backward(model, zero=True), METRIC)
    assert_close(moved_by(optimizer, model.weight), want)


def test_gradients_written_past_autograd_are_directed_after_a_skipped_step_that_zeroed_them():
    """As copies to master weights are, and what a replayed CUDA graph writes."""
    model, optimizer, handle = convolution()
    backward(model)
    for skipped in (True, False):
        model.weight.grad.data.copy_(g := torch.randn_like(model.weight))
        handle.apply()
        if skipped:
            optimizer.zero_grad(set_to_none=False)
    assert_close(moved_by(optimizer, model.weight), channel_directed(g, METRIC))
