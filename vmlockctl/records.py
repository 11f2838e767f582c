"""``NamedTuple`` for start-up: the same classes without loading ``typing``, ``collections`` and ``re``.

A wrapper script calls ``vmlockctl run`` on every VM start, and the standard ``NamedTuple`` costs more
there than the acquire itself: its imports, and compiling a constructor for each class. To a type checker
this is ``typing.NamedTuple``; at run time it is a tuple with named fields, defaults, ``_replace``,
``_asdict``, ``_make`` and ``_fields``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple  # noqa: PLC0414 - re-exported, for mypy --strict
else:
    from _collections import _tuplegetter as _field_getter

    def _new(cls, *values, **named):
        if not named and len(values) == len(cls._fields):
            return tuple.__new__(cls, values)
        given = dict(zip(cls._fields, values))
        found = {**cls._field_defaults, **given, **named}
        too_many = len(values) > len(cls._fields) or any(field in given for field in named)
        if len(found) != len(cls._fields) or too_many:
            raise TypeError(f"{cls.__name__}: expected {', '.join(cls._fields)}, found {', '.join(found)}")
        return tuple.__new__(cls, (found[field] for field in cls._fields))

    def _make(cls, values):
        return tuple.__new__(cls, values)

    def _replace(self, **named):
        values = dict(zip(self._fields, self))
        values.update(named)
        if len(values) != len(self):
            unknown = set(named) - set(self._fields)
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return tuple.__new__(type(self), values.values())

    def _asdict(self):
        return dict(zip(self._fields, self))

    def _arguments(self):
        return tuple(self)

    def _repr(self):
        fields = ", ".join(f"{field}={value!r}" for field, value in zip(self._fields, self))
        return f"{type(self).__name__}({fields})"

    class _Maker(type):
        """Turns ``class X(NamedTuple)`` with annotated fields into a tuple class."""

        def __new__(cls, name, bases, namespace):
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            getters = {field: _field_getter(index, field) for index, field in enumerate(fields)}
            return type(
                name,
                (tuple,),
                {
                    **namespace,
                    **getters,
                    "__slots__": (),
                    "__new__": _new,
                    "__repr__": _repr,
                    "__getnewargs__": _arguments,
                    "_fields": fields,
                    "_field_defaults": defaults,
                    "_make": classmethod(_make),
                    "_replace": _replace,
                    "_asdict": _asdict,
                },
            )

    class NamedTuple(metaclass=_Maker):
        """Base for the class statement; the class that comes out is a tuple."""
