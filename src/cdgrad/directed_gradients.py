"""Which gradients are directed already: the memory of an attachment.

A gradient is directed from the moment the operator was applied until the step is over or a backward pass
writes it, which a hook on the parameter reports. What else happens to it, such as clipping in place or
`param.grad = f(param.grad)`, leaves it a directed gradient. After a step that failed, and around a closure,
a gradient that was exchanged or written without a backward pass counts as a new one, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from cdgrad._torch_private import version
from cdgrad.selection import Target

_Record = tuple[weakref.ref[Tensor], int]


class DirectedGradients:
    """The directed gradients of a list of targets, by index.

    Attributes:
        records: index -> (the gradient, its version when it was directed).
        used: the same, of the last step that is over.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.records: dict[int, _Record] = {}
        self.used: dict[int, _Record] = {}
        self._targets = targets
        self._hooks: dict[int, RemovableHandle] = {}
        # Parameters may outlive the optimizer, and this memory with it.
        self.close: Callable[[], object] = weakref.finalize(self, _close, self._hooks, self.records)
        self.listen()

    def listen(self) -> None:
        """Hook every parameter that can take a hook and has none of these yet."""
        if len(self._hooks) == len(self._targets):
            return
        for i, target in enumerate(self._targets):
            if i not in self._hooks and target.param.requires_grad and target.param.is_leaf:
                heard = partial(_forget, self.records, self.used, i)
                self._hooks[i] = target.param.register_post_accumulate_grad_hook(heard)  # pyright: ignore[reportUnknownMemberType]

    def add(self, indices: Sequence[int], grads: Sequence[Tensor]) -> None:
        """Remember that these gradients are directed."""
        self.records.update(zip(indices, [(weakref.ref(grad), version(grad)) for grad in grads], strict=True))

    def state(self) -> dict[int, _Record]:
        """The directed gradients as they are now, for `forget_changed` later."""
        there = {i: self._targets[i].param.grad for i in self.records}
        return {i: (weakref.ref(g), version(g)) for i, g in there.items() if g is not None}

    def forget_changed(self, since: dict[int, _Record], only: dict[int, _Record] | None = None) -> None:
        """Forget the gradients that are not the same tensors, unwritten, as in `since`.

        With `only`, those alone whose record is still the one in it: others were directed anew.
        """
        for i, record in list(self.records.items()):
            if (only is None or only.get(i) is record) and not self._unchanged(i, since.get(i)):
                del self.records[i]

    def is_used(self, i: int) -> bool:
        """Whether the gradient is the one that the last step took."""
        return self._unchanged(i, self.used.get(i))

    def end_step(self) -> None:
        """Forget all; `used` keeps it."""
        self.used.clear()
        self.used.update(self.records)
        self.records.clear()

    def _unchanged(self, i: int, record: _Record | None) -> bool:
        grad = self._targets[i].param.grad
        return record is not None and grad is not None and record[0]() is grad and version(grad) == record[1]


def _forget(records: dict[int, _Record], used: dict[int, _Record], i: int, param: Tensor) -> None:
    records.pop(i, None)
    used.pop(i, None)


def _close(hooks: dict[int, RemovableHandle], records: dict[int, _Record]) -> None:
    for hook in hooks.values():
        hook.remove()
    hooks.clear()
    records.clear()
