"""From the text of a .proto file to a descriptor that protobuf can make message classes of, without a generated file.

A generated module is tied to versions of protobuf, and takes its place in the one pool that all programs of a process
share, where a client's own copy of the same messages would collide with it. It reads the part of proto3 that
inference.proto uses: messages and enums, nested too, oneof, map, repeated, and services. No imports and no options.
Source: the Protocol Buffers language guide for proto3.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

COMMENT = re.compile(r"//[^\n]*")
TOKEN = re.compile(r'\s*("[^"]*"|[A-Za-z_][\w.]*|\d+|[{}()<>=;,])')
SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def parse(text: str, name: str) -> FileDescriptorProto:
    """The descriptor of a file; `name` is the file's own.

    Raises:
        ValueError: it is no such file; the message has the place.
    """
    return _Parser(text, name).file


class _Parser:
    """Reads on from token to token; `file` is complete when it has been made."""

    def __init__(self, text: str, name: str) -> None:
        self._rest = COMMENT.sub("", text).strip()
        self.file = FileDescriptorProto(name=name)
        while self._rest:
            self._top(self._word())
        self._resolve()

    # --- tokens ----------------------------------------------------------------------------------------------------

    def _word(self) -> str:
        found = TOKEN.match(self._rest)
        if found is None:
            raise ValueError(f"cannot read {self._rest[:40]!r}")
        self._rest = self._rest[found.end() :].lstrip()
        return found[1]

    def _expect(self, *words: str) -> None:
        for word in words:
            if (found := self._word()) != word:
                raise ValueError(f"{word!r} expected, not {found!r}, before {self._rest[:40]!r}")

    def _streams(self) -> bool:
        """Whether `stream` is next; then it is read."""
        if is_next := self._rest.startswith("stream "):
            self._expect("stream")
        return is_next

    # --- definitions -----------------------------------------------------------------------------------------------

    def _top(self, word: str) -> None:
        match word:
            case "syntax":
                self._expect("=", '"proto3"', ";")
                self.file.syntax = "proto3"
            case "package":
                self.file.package = self._word()
                self._expect(";")
            case "message":
                self._message(self.file.message_type.add())
            case "enum":
                self._enum(self.file.enum_type.add())
            case "service":
                self._service()
            case _:
                raise ValueError(f"cannot read {word!r} before {self._rest[:40]!r}")

    def _message(self, message: DescriptorProto) -> None:
        message.name = self._word()
        self._expect("{")
        while (word := self._word()) != "}":
            match word:
                case "message":
                    self._message(message.nested_type.add())
                case "enum":
                    self._enum(message.enum_type.add())
                case "oneof":
                    message.oneof_decl.add(name=self._word())
                    self._expect("{")
                    while (kind := self._word()) != "}":
                        self._field(message, kind, oneof_index=len(message.oneof_decl) - 1)
                case "map":
                    self._map(message)
                case "repeated":
                    self._field(message, self._word(), label=FieldDescriptorProto.LABEL_REPEATED)
                case _:
                    self._field(message, word)

    def _field(self, message: DescriptorProto, kind: str, **more: Any) -> None:
        name = self._word()
        self._expect("=")
        field = message.field.add(name=name, number=int(self._word()), **{"label": 1, **more})
        self._expect(";")
        if kind in SCALARS:
            field.type = SCALARS[kind]
        else:
            field.type_name = kind

    def _map(self, message: DescriptorProto) -> None:
        """A map is a repeated message of keys and values, which protobuf knows by its option."""
        self._expect("<")
        key = self._word()
        self._expect(",")
        value = self._word()
        self._expect(">")
        name = self._word()
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        self._rest = f"key = 1; value = 2; {name} {self._rest}"
        self._field(entry, key)
        self._field(entry, value)
        self._field(message, entry.name, label=FieldDescriptorProto.LABEL_REPEATED)

    def _enum(self, enum: Any) -> None:
        enum.name = self._word()
        self._expect("{")
        while (name := self._word()) != "}":
            self._expect("=")
            enum.value.add(name=name, number=int(self._word()))
            self._expect(";")

    def _service(self) -> None:
        service = self.file.service.add(name=self._word())
        self._expect("{")
        while self._word() != "}":  # it is "rpc"
            method = service.method.add(name=self._word())
            self._expect("(")
            method.client_streaming = self._streams()
            method.input_type = f".{self.file.package}.{self._word()}"
            self._expect(")", "returns", "(")
            method.server_streaming = self._streams()
            method.output_type = f".{self.file.package}.{self._word()}"
            self._expect(")", ";")

    # --- names -----------------------------------------------------------------------------------------------------

    def _resolve(self) -> None:
        """Give each field of a message's or an enum's type the full name, looked for from the inside out."""
        kinds: dict[str, int] = {}
        scopes: list[tuple[str, DescriptorProto]] = []

        def collect(scope: str, messages: Any, enums: Any) -> None:
            kinds.update({f"{scope}.{enum.name}": FieldDescriptorProto.TYPE_ENUM for enum in enums})
            for message in messages:
                inner = f"{scope}.{message.name}"
                kinds[inner] = FieldDescriptorProto.TYPE_MESSAGE
                scopes.append((inner, message))
                collect(inner, message.nested_type, message.enum_type)

        collect(f".{self.file.package}", self.file.message_type, self.file.enum_type)
        for scope, message in scopes:
            for field in message.field:
                if field.type_name:
                    field.type_name = _found(field.type_name, scope, kinds)
                    field.type = kinds[field.type_name]


def _found(name: str, scope: str, kinds: dict[str, int]) -> str:
    while scope:
        if f"{scope}.{name}" in kinds:
            return f"{scope}.{name}"
        scope = scope.rpartition(".")[0]
    raise ValueError(f"no message and no enum {name!r}")
