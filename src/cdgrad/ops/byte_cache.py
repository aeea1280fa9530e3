"""A cache of computed weights, bounded by bytes: a count of entries is no bound, as weights grow with n."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import Any, TypeVar, cast

from cdgrad._torch_private import outside_modes

Result = TypeVar("Result")


def cached_by_bytes(limit: int) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """`functools.lru_cache` that holds at most `limit` bytes of arrays or tensors, the latest used.

    A result is an array, a tensor, or a tuple or list of them; one larger than `limit` is not kept.
    The decorated function has `cache_clear()` and `cache_bytes()`.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        held: OrderedDict[Hashable, tuple[Result, int]] = OrderedDict()
        total = 0
        lock = Lock()

        @wraps(function)
        def cached(*key: Hashable) -> Result:
            nonlocal total
            with lock:
                if key in held:
                    held.move_to_end(key)
                    return held[key][0]
            with outside_modes():  # what is kept is used again, outside of the modes of this call
                result = function(*key)
            size = _bytes(result)
            with lock:
                if size <= limit and key not in held:
                    held[key] = result, size
                    total += size
                    while total > limit:
                        _, (_, dropped) = held.popitem(last=False)
                        total -= dropped
            return result

        def clear() -> None:
            nonlocal total
            with lock:
                held.clear()
                total = 0

        function_with_methods = cast(Any, cached)
        function_with_methods.cache_clear, function_with_methods.cache_bytes = clear, lambda: total
        return cached

    return decorate


def _bytes(value: Any) -> int:
    if isinstance(value, tuple | list):
        return sum(map(_bytes, cast("list[Any]", value)))
    return 64 + int(getattr(value, "nbytes", 0))
