"""A verb as users meet it: one signature, docstring and type for the blocking and asyncio clients.

A method of a verb says what to do (`Run`) and does nothing; who drives it is the client's business.
`verb` makes of it a method that blocks in the one client and a coroutine in the other: the real
functions are put on a client's classes when those are made, so that `help`, `inspect` and a call
cost and show what a method written there would. To a type checker they are descriptors.
"""

import functools
import inspect
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Sequence,
)
from dataclasses import dataclass
from operator import attrgetter
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    overload,
)

from hybridps.verbs.calls import Call

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B")
A = TypeVar("A")

Addressed = tuple[int, Call[Any]]
# A verb at work: yields calls, one list at a time, each with its server; is sent the list of
# replies in the same order (or has the error thrown into it); returns the result.
Steps = Generator[Sequence[Addressed], list[Any], T]


@dataclass(slots=True)
class Run(Generic[T]):
    """What to do, and within how many seconds; None: those of `connect`."""

    steps: Steps[T]
    timeout: float | None = None


class Pause(Run[Any]):
    """Nothing is to be done for so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(_nothing())
        self.seconds = seconds


def _nothing() -> Steps[None]:
    yield from ()


# One thing after the other; what gives None is passed over.
Walk = Iterator[Run[T | None]]

_driver_of: Final[Callable[[Any], Any]] = attrgetter("_driver")


class Driver(Protocol):
    """Who does what a verb says, and waits."""

    def finish(self, run: Run[T]) -> T:
        """To its result."""

    def pause(self, seconds: float) -> None:
        """Does nothing for so long."""


class AwaitedDriver(Protocol):
    """As `Driver`, awaited."""

    async def finish(self, run: Run[T]) -> T:
        """To its result."""

    async def pause(self, seconds: float) -> None:
        """Does nothing for so long."""


class Blocking:
    """A class whose verbs block."""

    _driver: Driver

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _install(cls, "blocking")


class Awaited:
    """A class whose verbs are awaited."""

    _driver: AwaitedDriver

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _install(cls, "awaited")


class Verb(Generic[B, A]):
    """A method that is a B where it blocks, and an A where it is awaited."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    @overload
    def __get__(self, face: Blocking, owner: type) -> B: ...
    @overload
    def __get__(self, face: Awaited, owner: type) -> A: ...
    @overload
    def __get__(self, face: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, face: object, owner: type) -> Any:
        # Only of a class that is no client's: theirs have the functions below.
        return self._make

    def blocking(self) -> Any:
        """The method that blocks."""
        make = self._make

        def method(face: Any, /, *args: Any, **kwargs: Any) -> Any:
            return _driver_of(face).finish(make(face, *args, **kwargs))

        return method

    def awaited(self) -> Any:
        """The method that is awaited."""
        make = self._make

        async def method(face: Any, /, *args: Any, **kwargs: Any) -> Any:
            return await _driver_of(face).finish(make(face, *args, **kwargs))

        return method

    def as_method(self, owner: type, name: str, kind: str) -> Any:
        """What `owner` gets by that name: documented as the verb is."""
        method: Any = functools.wraps(self._make)(getattr(self, kind)())
        method.__qualname__ = f"{owner.__qualname__}.{name}"
        method.__signature__ = self._signature(owner)
        method.__annotations__ = {**method.__annotations__}
        if "return" in method.__annotations__:
            method.__annotations__["return"] = method.__signature__.return_annotation
        return method

    def _signature(self, owner: type) -> inspect.Signature:
        signature = inspect.signature(self._make)
        return signature.replace(return_annotation=_given(signature.return_annotation, owner))


def verb(
    make: Callable[Concatenate[Any, P], Run[T]],
) -> Verb[Callable[P, T], Callable[P, Coroutine[Any, Any, T]]]:
    """A verb of what a method says is to be done."""
    return Verb(make)


def typed_verb(_kind: type[Verb[B, A]]) -> Callable[[Callable[..., Run[Any]]], Verb[B, A]]:
    """As `verb`, of a type that is given: for results that depend on an argument."""
    return Verb


class _Iterated(Verb[B, A]):
    """A walk as an iterator."""

    def blocking(self) -> Any:
        make: Callable[..., Any] = self._make

        def method(face: Any, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
            for run in make(face, *args, **kwargs):
                if isinstance(run, Pause):
                    _driver_of(face).pause(run.seconds)
                elif (item := _driver_of(face).finish(run)) is not None:
                    yield item

        return method

    def awaited(self) -> Any:
        make: Callable[..., Any] = self._make

        async def method(face: Any, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            for run in make(face, *args, **kwargs):
                if isinstance(run, Pause):
                    await _driver_of(face).pause(run.seconds)
                elif (item := await _driver_of(face).finish(run)) is not None:
                    yield item

        return method


def walk(
    make: Callable[Concatenate[Any, P], Walk[T]],
) -> Verb[Callable[P, Iterator[T]], Callable[P, AsyncIterator[T]]]:
    """A verb that is iterated over."""
    return _Iterated(make)


class _Long(Verb[B, A]):
    """Runs of which each needs what the one before gave, to their result."""

    def __init__(self, make: Callable[..., Any], result: Any) -> None:
        super().__init__(make)
        self._result = result

    def blocking(self) -> Any:
        make: Callable[..., Any] = self._make

        def method(face: Any, /, *args: Any, **kwargs: Any) -> Any:
            work = make(face, *args, **kwargs)
            go_on = functools.partial(next, work)
            while True:
                try:
                    run = go_on()
                except StopIteration as end:
                    return end.value
                try:
                    go_on = functools.partial(work.send, _driver_of(face).finish(run))
                except Exception as error:  # noqa: BLE001 - what becomes of it the work decides
                    go_on = functools.partial(work.throw, error)

        return method

    def awaited(self) -> Any:
        make: Callable[..., Any] = self._make

        async def method(face: Any, /, *args: Any, **kwargs: Any) -> Any:
            work = make(face, *args, **kwargs)
            go_on = functools.partial(next, work)
            while True:
                try:
                    run = go_on()
                except StopIteration as end:
                    return end.value
                try:
                    go_on = functools.partial(work.send, await _driver_of(face).finish(run))
                except Exception as error:  # noqa: BLE001 - what becomes of it the work decides
                    go_on = functools.partial(work.throw, error)

        return method

    def _signature(self, owner: type) -> inspect.Signature:
        return super()._signature(owner).replace(return_annotation=self._result)


def long_verb(result: Any) -> Callable[[Callable[..., Any]], Verb[Any, Any]]:
    """A verb of many runs, one after the other, each with the timeout; `result` is its type."""
    return functools.partial(_Long, result=result)


class _Attribute(Verb[B, A]):
    """A verb without arguments, as a property."""

    def as_method(self, owner: type, name: str, kind: str) -> Any:
        return property(super().as_method(owner, name, kind))


def attribute(make: Callable[[Any], Run[T]]) -> Verb[T, Awaitable[T]]:
    """A verb without arguments that reads like a property."""
    return _Attribute(make)


def _install(owner: type, kind: str) -> None:
    """Puts the verbs of all base classes on a client's class, as its own methods."""
    seen: set[str] = set()
    for base in owner.__mro__:
        for name, value in list(vars(base).items()):
            if name not in seen and isinstance(value, Verb):
                setattr(owner, name, value.as_method(owner, name, kind))
            seen.add(name)


def _given(annotation: Any, owner: type) -> Any:
    """What a user gets where a method says `Run[X]`: X, or what stands for it in `owner`."""
    origin = get_origin(annotation)
    if origin is Iterator:  # A Walk.
        ((item, _),) = (get_args(_given(run, owner)) for run in get_args(annotation))
        iterator: Any = AsyncIterator if issubclass(owner, Awaited) else Iterator
        return iterator[item]
    if origin is not Run:
        return annotation
    (result,) = get_args(annotation)
    for base in getattr(owner, "__orig_bases__", ()):
        parameters = getattr(get_origin(base), "__parameters__", ())
        result = dict(zip(parameters, get_args(base), strict=False)).get(result, result)
    return result
