"""scikit-learn's conventions for estimators, without a dependency on it.

scikit-learn asks objects for methods, not for a base class: parameters of the constructor by ``get_params`` and
``set_params``, copies by ``__sklearn_clone__``, tags and the fitted state (its developer guide, "Developing
scikit-learn estimators"). It is imported only when it calls for its own tags.
"""

from __future__ import annotations

import inspect
import sys
from functools import cache
from typing import Self

from dmgal.errors import DmgalError


class NotFittedError(DmgalError, AttributeError):
    """A request for an answer before the first class is known."""


def not_fitted_error(problem: str, *, received: str, expected: str, remedy: str) -> NotFittedError:
    """Return an error that is also scikit-learn's ``NotFittedError`` if the program has imported scikit-learn."""
    known = sys.modules.get("sklearn.exceptions")
    kind = NotFittedError if known is None else _shared_error(known.NotFittedError)
    return kind(problem, received=received, expected=expected, remedy=remedy)


@cache
def _shared_error(theirs: type[Exception]) -> type[NotFittedError]:
    return type("NotFittedError", (NotFittedError, theirs), {"__doc__": NotFittedError.__doc__, "__reduce__": _reduce})


def _reduce(error: NotFittedError) -> tuple[object, ...]:
    """Pickle as `NotFittedError`, because a class made at run time cannot be found by its name."""
    return _rebuilt, (str(error), vars(error))


def _rebuilt(message: str, parts: dict[str, object]) -> NotFittedError:
    known = sys.modules.get("sklearn.exceptions")
    kind = NotFittedError if known is None else _shared_error(known.NotFittedError)
    error = kind.__new__(kind, message)
    vars(error).update(parts)
    return error


class ClassifierConventions:
    """A classifier whose constructor stores its arguments under their names and does nothing else."""

    _estimator_type = "classifier"  # before scikit-learn 1.6
    _shared_state: tuple[str, ...] = ()
    """Attributes that copies share, because they depend on the parameters only and do not change."""

    @classmethod
    def _defaults(cls) -> dict[str, object]:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """Return the constructor's arguments by name. ``deep`` is ignored, because none of them has parameters."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **params: object) -> Self:
        """Set arguments of the constructor, and return this object.

        Raises:
            DmgalError: there is no such argument.
        """
        unknown = sorted(params.keys() - self._defaults().keys())
        if unknown:
            raise DmgalError(
                f"{type(self).__name__} has no such parameters.",
                received=", ".join(unknown),
                expected=f"one of {', '.join(self._defaults())}",
                remedy="Correct the name.",
            )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.get_params().items() if value != self._defaults()[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __sklearn_clone__(self) -> Self:
        copy = type(self)(**self.get_params())
        vars(copy).update({name: vars(self)[name] for name in self._shared_state if name in vars(self)})
        return copy

    def __sklearn_tags__(self) -> object:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True, one_d_labels=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=False),
            no_validation=True,
        )
