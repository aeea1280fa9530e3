"""Which gradients are directed already: the memory of an attachment.

A gradient is directed from the moment the operator was applied until the step is over or a backward pass
writes it. What else happens to it, such as clipping in place or `param.grad = f(param.grad)`, leaves it a
directed gradient. So hooks on the parameters record backward passes, where one can come between (`listen`):
after `apply`, and in steps that run other code than torch's own. After a step
that failed, and around a closure, a gradient that was exchanged or written without a backward pass counts
as a new one, too; identity and version show that.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from cdgrad._torch_private import Reference, references, refers_to, version, versions
from cdgrad.dtensors import is_dtensor
from cdgrad.selection import Target

Record = tuple[Reference, int]
"""A gradient by its memory, and its version when it was directed."""

_MOST_WRITTEN = 100_000
# What removed attachments directed, and no step has taken, by parameter.
_LEFT: weakref.WeakKeyDictionary[Optimizer, dict[Tensor, Record]] = weakref.WeakKeyDictionary()

_Batch = tuple[Sequence[int], list[Reference], list[int]]


class DirectedGradients:
    """The directed gradients of a list of targets, by index."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._records: dict[int, Record] = {}
        self._added: list[_Batch] = []  # records that are created on demand
        # When the running closure began: each record, and its gradient as it was then.
        self._before_closure: dict[int, tuple[Record, Record | None]] = {}
        self._used: dict[int, Record] = {}
        self._used_batches: list[_Batch] = []
        self._targets = targets
        self._sharded = any(is_dtensor(target.param) for target in targets)
        self._hooks: dict[int, RemovableHandle] = {}
        self._written: list[Tensor] = []  # parameters whose gradients a backward pass wrote, repeatedly
        # Parameters may outlive the optimizer, and this memory with it.
        self.close: Callable[[], object] = weakref.finalize(self, _close, self._hooks, self._written)

    @property
    def records(self) -> dict[int, Record]:
        """The gradients that are directed, by index."""
        if self._written:
            self._forget_written()
        if self._added:
            _make_records(self._records, self._added)
        return self._records

    @property
    def indices(self) -> Collection[int]:
        """Of the gradients that are directed; where they are one batch, no records are made of it."""
        if self._written:
            self._forget_written()
        return self._added[0][0] if len(self._added) == 1 and not self._records else self.records

    @property
    def used(self) -> dict[int, Record]:
        """The gradients that the last finished step used, by index."""
        _make_records(self._used, self._used_batches)
        return self._used

    def __len__(self) -> int:
        """How many gradients are directed."""
        return len(self.indices)

    def listen(self) -> None:
        """Hook every parameter that can take a hook and has none of these yet."""
        if len(self._hooks) == len(self._targets):
            return
        for i, target in enumerate(self._targets):
            if i not in self._hooks and target.param.requires_grad and target.param.is_leaf:
                # A method of list costs a quarter of what a Python function does, in every backward pass.
                wrote = self._written.append if self._hooks else partial(_write_briefly, self._written)
                self._hooks[i] = target.param.register_post_accumulate_grad_hook(wrote)

    def add(self, indices: Sequence[int], grads: Sequence[Tensor]) -> None:
        """Remember that these gradients are directed."""
        if self._written:
            self._forget_written()  # writes before this call do not concern these gradients
        refs = references(grads, sharded=self._sharded)
        self._added.append((indices, refs, versions(grads, sharded=self._sharded)))

    def begin_step(self) -> None:
        """A step begins: should it fail, what was clipped or exchanged by now is directed still."""
        if len(self):
            self._records, self._added = {}, [self._state()]

    def take_over(self, optimizer: Optimizer) -> None:
        """Remember what an earlier attachment to this optimizer directed, if nothing wrote it since."""
        left = _LEFT.pop(optimizer, {})
        records = {i: left[target.param] for i, target in enumerate(self._targets) if target.param in left}
        self._records = {i: record for i, record in records.items() if self._unchanged(i, record)}
        if self._records:
            self.listen()

    def leave(self, optimizer: Optimizer) -> None:
        """Keep what is directed for the next attachment to this optimizer."""
        left = _LEFT.setdefault(optimizer, {})
        left |= {self._targets[i].param: record for i, record in _records_of(self._state()).items()}

    def begin_closure(self) -> None:
        """A closure begins: what was directed earlier, and is not computed anew in it, is directed still."""
        state = _records_of(self._state())
        self._before_closure = {i: (record, state.get(i)) for i, record in self.records.items()}

    def end_closure(self) -> None:
        """It returned: forget what it computed anew."""
        for i in [i for i in self.records if not self.is_directed(i)]:
            del self.records[i]
        self._before_closure = {}

    def is_directed(self, i: int) -> bool:
        """Whether the gradient is directed, also within a closure, which may have computed it anew."""
        record = self.records.get(i)
        if record is None or i not in self._before_closure:
            return record is not None
        before, state = self._before_closure[i]
        return record is not before or self._unchanged(i, state)

    def forget_changed(self) -> None:
        """Forget the gradients that are not the same tensors, unwritten, as when they were directed."""
        for i, record in list(self.records.items()):
            if not self._unchanged(i, record):
                del self.records[i]

    def is_used(self, i: int) -> bool:
        """Whether the gradient is the one that the last step took."""
        return self._unchanged(i, self.used.get(i))

    def end_step(self) -> None:
        """Forget all; `used` keeps it."""
        if self._written:
            self._forget_written()
        if self._records:
            self._used, self._used_batches = self.records, []
        else:
            self._used, self._used_batches = {}, self._added
        self._records, self._added, self._before_closure = {}, [], {}

    def _state(self) -> _Batch:
        """The gradients that are directed, as they are now."""
        grads = {i: g for i in self.indices if (g := self._targets[i].param.grad) is not None}
        present = list(grads.values())
        refs, written = references(present, sharded=self._sharded), versions(present, sharded=self._sharded)
        return list(grads), refs, written

    def _forget_written(self) -> None:
        _make_records(self._records, self._added)
        if self._records:
            written = set(map(id, self._written))
            for i in [i for i in self._records if id(self._targets[i].param) in written]:
                del self._records[i]
        self._written.clear()

    def _unchanged(self, i: int, record: Record | None) -> bool:
        grad = self._targets[i].param.grad
        if record is None or grad is None:
            return False
        return refers_to(record[0], grad) and 0 <= version(grad) == record[1]


def _write_briefly(written: list[Tensor], param: Tensor) -> None:
    """Append; where many backward passes have no step between them, drop what is listed twice."""
    written.append(param)
    if len(written) > _MOST_WRITTEN:
        written[:] = {id(each): each for each in written}.values()


def _close(hooks: dict[int, RemovableHandle], written: list[Tensor]) -> None:
    for hook in hooks.values():
        hook.remove()
    hooks.clear()
    written.clear()


def _make_records(records: dict[int, Record], batches: list[_Batch]) -> None:
    for batch in batches:
        records |= _records_of(batch)
    batches.clear()


def _records_of(batch: _Batch) -> dict[int, Record]:
    indices, refs, its_versions = batch
    return dict(zip(indices, zip(refs, its_versions, strict=True), strict=True))
