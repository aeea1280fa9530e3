"""The targets that an optimizer holds now: groups change, parameters freeze, lazy layers materialize."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable
from itertools import chain

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from cdgrad.messages import first_few
from cdgrad.options import Options
from cdgrad.refusals import parameters
from cdgrad.selection import Selection, Skipped, Target, has_lazy, warn_of_nothing

_params_of = operator.itemgetter("params")


class HeldTargets:
    """The targets of a selection whose parameters an optimizer holds.

    Attributes:
        selection: all targets, and what is left alone.
        indices: of the held targets, within the selection.
        targets: the held targets.
        params: their parameters.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        selection: Selection,
        options: Options,
        all_of: Callable[[Optimizer], Iterable[HeldTargets]],
    ) -> None:
        self.selection = selection
        self.indices: tuple[int, ...] = ()
        self.targets: tuple[Target, ...] = ()
        self.params: tuple[Tensor, ...] = ()
        self._kind = type(optimizer).__name__
        self._options = options
        self._of_model = set(model.parameters())
        self._present = parameters(optimizer)  # when it was attached
        self._all_of = all_of
        self._noticed: set[Tensor] = set()
        self._lazy_model = model if has_lazy(selection) else None
        self._held: list[Tensor] | None = None
        self._single: list[tuple[int, Tensor]] = []  # held parameters of one element, with their place

    def refresh(self, optimizer: Optimizer) -> bool:
        """Follow the optimizer; returns whether the targets changed, because lazy layers were materialized.

        Raises:
            RuntimeError: the optimizer holds no target any more.

        Warns:
            UserWarning: it holds parameters that are neither selected nor left alone.
        """
        selection = self.selection
        if self._lazy_model is not None:
            self._select_materialized(self._lazy_model)
        groups = optimizer.param_groups
        held: list[Tensor] = (
            groups[0]["params"] if len(groups) == 1 else list(chain.from_iterable(map(_params_of, groups)))
        )
        if not self._holds_the_same(held):
            self._find(optimizer, list(held))
        return self.selection.targets is not selection.targets

    def shown(self, optimizer: Optimizer | None) -> Selection:
        """The selection, less what is frozen or not held, and with the parameters of no attached model."""
        held = parameters(optimizer) if optimizer is not None else set[Tensor]()
        targets = [t for t in self.selection.targets if t.param in held and t.param.requires_grad]
        idle = [
            Skipped(t.name, "frozen" if t.param in held else f"not held by this {self._kind}")
            for t in self.selection.targets
            if t not in targets
        ]
        unknown = self._of_no_model(optimizer, held) if optimizer is not None else set[Tensor]()
        unattached = [
            Skipped(f"{_size(param)} parameter", "new since attach: remove() this handle and attach again")
            for param in unknown - self._present
        ]
        if count := len(unknown & self._present):
            reason = f"in no model attached to this {self._kind}: attach it with their model, too"
            unattached.append(Skipped(f"{count} parameter{'s' * (count > 1)}", reason))
        return Selection(tuple(targets), (*idle, *self.selection.skipped, *unattached))

    def forget(self) -> None:
        """Drop all references to parameters."""
        self.selection = Selection((), self.selection.skipped)
        self.indices, self.targets, self.params = (), (), ()
        self._held, self._lazy_model = None, None
        self._single = []
        self._of_model, self._present, self._noticed = set[Tensor](), set[Tensor](), set[Tensor]()

    def _holds_the_same(self, held: list[Tensor]) -> bool:
        """Whether these are the parameters of the last time.

        Lists compare the identities of their items first, ten times as fast as a loop does. Only unlike items
        are compared as tensors, and those of more than one element are never equal, but an error.
        """
        try:
            same = held == self._held
        except (RuntimeError, TypeError, ValueError):
            return False
        return same and all(held[i] is param for i, param in self._single)

    def _find(self, optimizer: Optimizer, held: list[Tensor]) -> None:
        holds = set(held)
        present = [(i, t) for i, t in enumerate(self.selection.targets) if t.param in holds]
        if self.selection.targets and not present:
            raise RuntimeError(
                f"this {self._kind} no longer holds any of the selected parameters "
                f"({self.selection.targets[0].name}, ...): they were replaced, for example by DeepSpeed's "
                "ZeRO; attach after the replacement, or use torch.distributed.fsdp.fully_shard"
            )
        self.indices, self.targets = tuple(i for i, _ in present), tuple(t for _, t in present)
        self.params = tuple(target.param for target in self.targets)
        self._held = held
        self._single = [(i, param) for i, param in enumerate(held) if _elements(param) == 1]
        if new := self._of_no_model(optimizer, holds - self._present) - self._noticed:
            self._warn_of_new(new)

    def _select_materialized(self, model: nn.Module) -> None:
        selection = self._options.select(model)
        if not has_lazy(selection):
            self._lazy_model = None
            if len(selection.targets) != len(self.selection.targets):
                self.selection, self._held = selection, None
            else:  # the reasons alone are new
                self.selection = Selection(self.selection.targets, selection.skipped)
            if not selection.targets:
                warn_of_nothing(model, selection, self._options.direction, self._options.linear)

    def _of_no_model(self, optimizer: Optimizer, params: set[Tensor]) -> set[Tensor]:
        """Those of no model that was attached to this optimizer."""
        left = params - self._of_model
        return left.difference(*(each._of_model for each in self._all_of(optimizer))) if left else left

    def _warn_of_new(self, new: set[Tensor]) -> None:
        """Warn, once each, of parameters that nobody could select."""
        self._noticed |= new
        shapes = first_few(list(map(_size, new)))
        warnings.warn(
            f"{self._kind} holds {len(new)} parameters ({shapes}) that the model did not have when it was "
            "attached; they are not directed: call handle.remove() and attach again",
            stacklevel=3,
        )


def _elements(param: Tensor) -> int:
    return 0 if is_lazy(param) else param.numel()


def _size(param: Tensor) -> str:
    return "x".join(map(str, param.shape)) or "scalar"
