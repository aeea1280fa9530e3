"""Any optimizer: attaching works, or is refused with the next move; the table in the docs says which."""

import re

import pytest
import torch
from optimizer_catalogue import (
    CASES,
    CREATE_GRAPH,
    IMAGES,
    LABELS,
    METRIC,
    WRAPPERS,
    Case,
    committed,
    direct_by_hand,
    network,
    outcome,
    runs_here,
)
from torch.nn import functional
from torch.optim import SGD, Optimizer

from cdgrad import attach, select

REGENERATE = "run: python tests/optimizer_catalogue.py, then make pages"
TABLE = committed()


@pytest.mark.filterwarnings(f"ignore:{CREATE_GRAPH}")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_table_says_what_happens(case: Case):
    listed = TABLE.get((case.name, case.variant))
    assert listed == (outcome(case) if runs_here(case) else None), REGENERATE


def test_the_record_has_no_other_row():
    assert TABLE.keys() <= {(case.name, case.variant) for case in CASES}, REGENERATE
    assert len({name for name, _ in TABLE}) > 140


def test_every_refusal_is_one_line_with_a_next_move():
    refusals = {why for works, why in TABLE.values() if not works}
    assert refusals
    for why in refusals:
        assert "\n" not in why
        assert re.search("; (attach to|call|choose|assign) ", why), why


def steps_of_a_wrapper(name, model, optimizer):
    """Three steps as the wrapper's documentation shows them."""

    @torch.enable_grad()
    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(IMAGES), LABELS)
        loss.backward()
        return loss

    for _ in range(3):
        if name == "GSAM":
            optimizer.set_closure(functional.cross_entropy, IMAGES, LABELS)
            optimizer.step()
        elif name == "WSAM":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step(*[closure] * name.endswith("SAM"))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", sorted(WRAPPERS.keys() - {"SafeFP16Optimizer"}))
def test_the_remedy_for_a_wrapper_works(name):
    """What the message says to attach to; a hook written by hand on the same optimizer is the reference."""
    message = TABLE[name, "wrapper"].why
    path = re.search(r"attach\(optimizer\.([\w.]+), \.\.\.\)$", message)[1]
    weights = {}
    for how in ("attach", "hand", "plain"):
        model = network()
        optimizer = WRAPPERS[name](model)
        inner = getattr(optimizer, path)
        if how == "attach":
            attach(inner, model, METRIC)
        elif how == "hand":
            inner.register_step_pre_hook(lambda *_, model=model: direct_by_hand(model))
        weights[how] = steps_of_a_wrapper(name, model, optimizer)
    assert torch.equal(weights["attach"], weights["hand"])
    assert not torch.equal(weights["attach"], weights["plain"])


class Chain(Optimizer):
    """Composed of optimizers that divide the parameters among them, kept in a list and a dict."""

    def __init__(self, first, rest):
        super().__init__([p for o in (first, *rest.values()) for p in parameters(o)], {})
        self.first = [first]
        self.rest = rest

    def step(self, closure=None):
        for optimizer in (*self.first, *self.rest.values()):
            optimizer.step()


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_composed_optimizers_are_attached_one_by_one():
    attached, manual = network(), network()
    for model in (attached, manual):
        optimizer = Chain(
            SGD(model[0].parameters(), lr=0.1),
            {"deep": SGD(model[2].parameters(), lr=0.2), "head": SGD(model[4].parameters(), lr=0.3)},
        )
        if model is attached:
            with pytest.raises(
                ValueError,
                match=r"attach\(optimizer\.first\[0\], .*\) and attach\(optimizer\.rest\['deep'\], \.\.\.\)$",
            ):
                attach(optimizer, model, METRIC)
            attach(optimizer.first[0], model, METRIC)
            attach(optimizer.rest["deep"], model, METRIC)
        functional.cross_entropy(model(IMAGES), LABELS).backward()
        if model is manual:
            direct_by_hand(model)
        optimizer.step()
    for a, b in zip(attached.parameters(), manual.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_reference_back_to_the_wrapper_is_not_an_optimizer_inside():
    model = network()
    wrapper = WRAPPERS["Lookahead"](model)
    wrapper.optimizer.wrapper = wrapper
    attach(wrapper.optimizer, model, METRIC)
    assert_one_step_directs(model, wrapper.optimizer)


def test_a_wrapper_whose_inner_optimizer_holds_other_parameters_is_attached_itself():
    model = network()
    optimizer = SGD(model[:4].parameters(), lr=0.1)
    optimizer.helper = SGD(model[4].parameters(), lr=0.1)
    attach(optimizer, model, METRIC)
    assert_one_step_directs(model, optimizer)


def assert_one_step_directs(model, optimizer):
    """Against plain SGD at the same rate, directed by hand."""
    manual = network()
    functional.cross_entropy(model(IMAGES), LABELS).backward()
    functional.cross_entropy(manual(IMAGES), LABELS).backward()
    direct_by_hand(manual)
    optimizer.step()
    SGD(manual.parameters(), lr=0.1).step()
    assert torch.equal(model[0].weight, manual[0].weight)
    assert torch.equal(model[2].weight, manual[2].weight)


class Searching(Optimizer):
    """Computes the gradient itself, from a function under a name of its own."""

    def step(self, *, forward):
        self.zero_grad()
        forward()
        for p in parameters(self):
            p.data.add_(p.grad, alpha=-0.1)


def test_a_gradient_that_no_hook_sees_is_an_error_at_the_first_step():
    model = network()
    optimizer = Searching(model.parameters(), {})
    handle = attach(optimizer, model, METRIC)

    def forward():
        functional.cross_entropy(model(IMAGES), LABELS).backward()

    for _ in range(2):  # without and with a gradient left over from before
        with pytest.raises(
            RuntimeError, match=r"recomputed the gradient of 0\.weight inside step\(\).*handle\.apply\(\)"
        ):
            optimizer.step(forward=forward)
    handle.enabled = False
    optimizer.step(forward=forward)


def test_apply_inside_such_a_step_is_the_remedy():
    attached, manual = network(), network()
    for model in (attached, manual):
        optimizer = Searching(model.parameters(), {})
        handle = attach(optimizer, model, METRIC) if model is attached else None

        def forward(model=model, handle=handle):
            functional.cross_entropy(model(IMAGES), LABELS).backward()
            direct_by_hand(model) if handle is None else handle.apply()

        for _ in range(3):
            optimizer.step(forward=forward)
    for a, b in zip(attached.parameters(), manual.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_per_parameter_in_the_backward_pass():
    """As in docs/optimizers.md, against one optimizer stepped afterwards."""
    attached, manual = network(), network()
    optimizers = {p: SGD([p], lr=0.1) for p in attached.parameters()}
    for target in select(attached).targets:
        attach(optimizers[target.param], attached, METRIC, include=target.name)

    def step_now(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in attached.parameters():
        param.register_post_accumulate_grad_hook(step_now)
    optimizer = SGD(manual.parameters(), lr=0.1)
    for _ in range(3):
        functional.cross_entropy(attached(IMAGES), LABELS).backward()
        optimizer.zero_grad()
        functional.cross_entropy(manual(IMAGES), LABELS).backward()
        direct_by_hand(manual)
        optimizer.step()
    for a, b in zip(attached.parameters(), manual.parameters(), strict=True):
        assert torch.equal(a, b)
