"""Protobuf messages declared as Python classes: each field is written once, with its number.

:func:`message` hands a declaration to Google's protobuf library, when the module is imported, and
returns the class that the library makes of it; type checkers see the declaration.  No compiler
and no generated code (docs/adr/0011).  Refuses, at import, what it cannot map.

Every integer is declared as ``int64``: a varint on the wire, like the other integers and enums
that NRI has, so it reads them all.
"""

import inspect
from collections.abc import MutableMapping, Sequence
from typing import Any, TypeVar, cast, get_args, get_origin

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

M = TypeVar("M", bound=Message)

_PACKAGE = "nodeagent.nri"
_POOL = DescriptorPool()  # of our own: other libraries' messages cannot collide with ours
_SCALARS = {
    str: FieldDescriptorProto.TYPE_STRING,
    bytes: FieldDescriptorProto.TYPE_BYTES,
    int: FieldDescriptorProto.TYPE_INT64,
    bool: FieldDescriptorProto.TYPE_BOOL,
}


def message(cls: type[M]) -> type[M]:
    r"""Return the protobuf class of the declaration *cls*.

    >>> from typing import Annotated
    >>> @message
    ... class Owner(Message):
    ...     uid: Annotated[int, 1]
    >>> Owner.FromString(b"\x08\xb9\x0a").uid
    1337

    Raises:
        TypeError: a field's type has no counterpart.
    """
    file = FileDescriptorProto(name=f"{_PACKAGE}.{cls.__name__}", package=_PACKAGE, syntax="proto3")
    declared = file.message_type.add(name=cls.__name__)
    for name, annotation in inspect.get_annotations(cls).items():
        kind, number = get_args(annotation)
        field = declared.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if get_origin(kind) is Sequence:
            field.label = FieldDescriptorProto.LABEL_REPEATED
            (kind,) = get_args(kind)
        if get_origin(kind) is MutableMapping:
            _add_map(declared, field, get_args(kind))
        else:
            _set_type(file, field, kind)
    _POOL.Add(file)
    made = GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{cls.__name__}"))
    return cast("type[M]", made)


def _set_type(file: FileDescriptorProto, field: FieldDescriptorProto, kind: Any) -> None:  # noqa: ANN401  # a type
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif inspect.isclass(kind) and issubclass(kind, Message):
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind.__name__}"
        file.dependency.append(f"{_PACKAGE}.{kind.__name__}")
    else:
        raise TypeError(f"{file.name}.{field.name}: a field cannot be {kind}")


def _add_map(declared: DescriptorProto, field: FieldDescriptorProto, kinds: tuple[type, ...]) -> None:
    """Make *field* a map: a repeated message with a key and a value."""
    name = "".join(part.title() for part in field.name.split("_")) + "Entry"
    entry = declared.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, (part, kind) in enumerate(zip(("key", "value"), kinds, strict=True), start=1):
        entry.field.add(name=part, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL, type=_SCALARS[kind])
    field.label = FieldDescriptorProto.LABEL_REPEATED
    field.type = FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{declared.name}.{name}"
