"""The reason that torch gives for a recompilation, without what the user's data may have put into it.

The reason is the guard that failed, and a guard on a string holds that string: an argument, or a key of a dictionary,
so possibly a prompt. It is followed by the line of the user's program that asked for it. Only what is known to be
harmless is kept: torch's own sentences, and Python expressions without their string constants.
"""

from __future__ import annotations

import ast
import re

UNKNOWN = "guard failed"
_LENGTH_MAX = 512
_ADDRESS_MIN = 1 << 32

_COMPILE_ID = re.compile(r"(?:!?[\d/_]+|None): ")
_TENSOR = re.compile(r"tensor '(.*)' ([\w ]+ mismatch\b.*)")
_TYPE = re.compile(r"expected type of '(.*)' to be .+, '? ?but found <class '([\w.]+)'>")
_IDENTITY = re.compile(r"(.+?), type=<class '([\w.]+)'>(?:\s+#.*)?")
_KEY = re.compile(r"KeyError on (.*)")
_SENTENCE = re.compile(
    r"GLOBAL_STATE changed: [\w ]*|[A-Z_]+ (?:failure|guard)\b|Duplicate tensors found|Unexpected recompilation"
    r"|Unable to find recompilation reasons"
)


def redact(reason: str) -> str:
    """The first guard that failed, without string constants: of ``L['mode'] == 'x'`` remains ``mode == '…'``.

    Names of variables, keyword arguments, attributes, submodules and types remain, and numbers (sizes), except
    addresses. At most 512 characters.
    """
    return _redact(_COMPILE_ID.sub("", reason.partition("\n")[0], count=1).strip())[:_LENGTH_MAX]


def _redact(line: str) -> str:
    if found := _TENSOR.fullmatch(line):
        return f"tensor {_expression(found[1])} {found[2]}"
    if found := _TYPE.fullmatch(line):
        return f"type of {_expression(found[1])} changed to {found[2]}"
    if (found := _IDENTITY.fullmatch(line)) and (guard := _expression(found[1])) != UNKNOWN:
        return f"{guard} of {found[2]}"
    if found := _KEY.fullmatch(line):
        return f"KeyError on {_expression(found[1])}"
    if found := _SENTENCE.match(line):
        return found[0].strip()
    return _expression(line)


def _expression(code: str) -> str:
    try:
        statement = ast.parse(code).body[0]  # the comment after it, a line of the user's program, is gone
        if isinstance(statement, ast.Expr):
            return ast.unparse(_Redaction().visit(statement))
    except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
        pass
    return UNKNOWN


class _Redaction(ast.NodeTransformer):
    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if isinstance(key, str) and key.isidentifier():
            match node.value:
                case ast.Name("L" | "G"):
                    return ast.Name(key)  # a local or global variable
                case ast.Name("kwargs") | ast.Subscript(ast.Name("L"), ast.Constant("kwargs")):
                    return ast.Subscript(self.visit(node.value), node.slice)
        if isinstance(node.value, ast.Attribute) and node.value.attr in ("_modules", "_parameters", "_buffers"):
            return ast.Subscript(self.visit(node.value), node.slice)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, (str, bytes)):
            return ast.Constant("…")
        is_address = isinstance(node.value, int) and node.value >= _ADDRESS_MIN
        return ast.Constant(...) if is_address else node
