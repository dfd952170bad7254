"""The language of kernel bodies: checked, then said in C++ and in NumPy.

A body is a list of assignments, each ended by a semicolon:

    name = expression;    name += expression;    auto name = expression;

to outputs and to locals made with `auto`; += may be -= *= /= &= |= ^= <<= >>=.
Expressions are made of names, numbers, parentheses, the operators + - * / and
comparisons, and the functions in FUNCTIONS; where(c, a, b) is a if c else b.
Comparisons are combined by & | ~, with parentheses around each. Integer kernels
have & | ^ ~ << >> on numbers in place of / and the functions of real numbers.
`index` is the element's position. Operators bind as in Python.
"""

import ast
import math
import re

import numpy

from .choice import where

FUNCTIONS = {  # name: (number of arguments, in C++, in NumPy)
    "where": (3, "where", "np.where"),
    "min": (2, "minimum", "np.minimum"),  # NaN if either is, as NumPy has it
    "max": (2, "maximum", "np.maximum"),
    "abs": (1, "absolute", "np.abs"),
    "isnan": (1, "is_nan", "np.isnan"),
    "isinf": (1, "is_inf", "np.isinf"),
    "round": (1, "rint", "np.rint"),  # halves to even
    "erf": (1, "erf", "erf"),
    "pow": (2, "pow", "np.power"),
    "atan2": (2, "atan2", "np.arctan2"),
} | {
    name: (1, name, f"np.{name}")
    for name in "sqrt exp expm1 log log1p sin cos tan tanh floor ceil trunc".split()
}
_ANY_TYPE = ("where", "min", "max", "abs")
_SIGN = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_STATEMENT = re.compile(r"(auto\s+)?([A-Za-z]\w*)\s*((?:<<|>>|[-+*/&|^])?)=(?!=)(.+)")

PREAMBLE = """
#ifndef MINIDL_HD
#define MINIDL_HD static inline
#endif
MINIDL_HD float absolute(float a) { return fabsf(a); }
MINIDL_HD double absolute(double a) { return fabs(a); }
template <class T> MINIDL_HD T absolute(T a) { return a < T(0) ? -a : a; }
template <class T> MINIDL_HD T where(bool c, T a, T b) { return c ? a : b; }
template <class T> MINIDL_HD T maximum(T a, T b) { return a > b || a != a ? a : b; }
template <class T> MINIDL_HD T minimum(T a, T b) { return a < b || a != a ? a : b; }
template <class T> MINIDL_HD bool is_nan(T a) { return a != a; }
template <class T> MINIDL_HD bool is_inf(T a) { return a == a && a - a != T(0); }
"""


class Body:
    """A parsed body; `cpp` are C++ statements, `python` a function's source.

    In C++ the names carry the prefix v_ and have the type T; `reads` are the
    outputs whose old values the body uses. Raises ValueError, with one sentence,
    for a body outside the language.
    """

    def __init__(self, name: str, inputs, outputs, scalars, text: str):
        self.name, self.outputs = name, outputs
        self.read_only = {*inputs, *scalars}
        self.known = dict.fromkeys([*inputs, *scalars, "index"], "number")
        self.reads: list[str] = []
        self.written: list[str] = []
        self.constants: list[int | float] = []
        self.needs_float = self.needs_integer = self.uses_index = False
        self.cpp, lines = [], []
        text = re.sub(r"//[^\n]*", "", text)
        *statements, rest = (" ".join(part.split()) for part in text.split(";"))
        if rest:
            self._refuse("a statement without its semicolon", rest)
        for statement in filter(None, statements):
            cpp, python = self._statement(statement)
            self.cpp.append(cpp)
            lines.append(python)
        for output in outputs:
            if output not in self.written:
                self._refuse("an output that is never assigned", output)
        if self.needs_float and self.needs_integer:
            self._refuse("integer operators together with real functions", name)
        arguments = ", ".join(f"v_{x}" for x in [*inputs, *outputs, *scalars, "index"])
        results = ", ".join(f"v_{x}" for x in outputs)
        body = "\n    ".join([*lines, f"return ({results},)"])
        self.python = f"def body({arguments}, C):\n    {body}\n"

    def function(self, dtype: numpy.dtype):
        """The NumPy function for this compute type: values in, outputs returned."""
        scope = {"np": numpy, "erf": _erf, "where": where}
        text = self.python.replace("np.where(", "where(")
        exec(compile(text, f"<kernel {self.name}>", "exec"), scope)  # noqa: S102
        constants = [dtype.type(value) for value in self.constants]
        return lambda *values: scope["body"](*values, constants)

    def _refuse(self, what: str, where: str):
        raise ValueError(f"kernel {self.name!r}: {what} in {where!r}")

    def _statement(self, text: str) -> tuple[str, str]:
        match = _STATEMENT.fullmatch(text)
        if match is None:
            self._refuse("not an assignment", text)
        new, name, operator, expression = match.groups()
        if new and (operator or name in self.known or name in self.outputs):
            self._refuse(f"auto with the name {name!r}, which exists already,", text)
        if name in self.read_only or name == "index" or name in FUNCTIONS:
            self._refuse(f"an assignment to {name!r}, which is read only,", text)
        if not new and name not in self.outputs and name not in self.known:
            self._refuse(f"an assignment to the unknown name {name!r}", text)
        if operator:
            expression = f"{name} {operator} ({expression})"
        try:
            tree = ast.parse(expression.strip(), mode="eval").body
        except SyntaxError:
            self._refuse("not an expression of this language", text)
        kind, cpp, python = self._expression(tree, text)
        if not new and kind == "truth" and self.known.get(name) != "truth":
            kind, cpp = "number", f"T({cpp})"
            python = (
                f"np.where({python}, {self._constant(1)[2]}, {self._constant(0)[2]})"
            )
        if not new and self.known.get(name, "number") != kind:
            self._refuse(f"a number assigned to {name!r}, a comparison,", text)
        self.known[name] = kind
        if name in self.outputs and name not in self.written:
            self.written.append(name)
        type_ = "" if not new else "bool " if kind == "truth" else "T "
        return f"{type_}v_{name} = {cpp};", f"v_{name} = {python}"

    def _expression(self, node: ast.expr, text: str) -> tuple[str, str, str]:
        """("number" or "truth", C++, Python) of a node."""
        match node:
            case ast.Constant(value=value) if type(value) in (int, float):
                return self._constant(value)
            case ast.Name(id=name):
                return self._name(name, text)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                _, cpp, python = self._typed("number", operand, text)
                return "number", f"(-{cpp})", f"(-{python})"
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                kind, cpp, python = self._expression(operand, text)
                self.needs_integer |= kind == "number"
                sign = "!" if kind == "truth" else "~"
                return kind, f"({sign}{cpp})", f"(~{python})"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIGN:
                return self._operation(left, op, right, text)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if (
                type(op) in _SIGN
            ):
                return "truth", *self._joined("number", left, op, right, text)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, arguments, text)
        self._refuse(f"{ast.unparse(node)!r}, which is outside the language,", text)

    def _typed(self, kind: str, node: ast.expr, text: str) -> tuple[str, str, str]:
        result = self._expression(node, text)
        if result[0] != kind:
            kinds = {"number": "a number", "truth": "a comparison"}
            self._refuse(f"{ast.unparse(node)!r} where {kinds[kind]} is needed", text)
        return result

    def _joined(self, kind: str, left, op, right, text: str) -> tuple[str, str]:
        a, b = (self._typed(kind, side, text) for side in (left, right))
        sign = _SIGN[type(op)]
        return f"({a[1]} {sign} {b[1]})", f"({a[2]} {sign} {b[2]})"

    def _operation(self, left, op, right, text: str) -> tuple[str, str, str]:
        kind = "number"
        if isinstance(op, ast.BitAnd | ast.BitOr | ast.BitXor):
            kind = self._expression(left, text)[0]
        if isinstance(op, ast.Div):
            self.needs_float = True
        elif not isinstance(op, ast.Add | ast.Sub | ast.Mult) and kind == "number":
            self.needs_integer = True
        return kind, *self._joined(kind, left, op, right, text)

    def _call(self, name: str, arguments, text: str) -> tuple[str, str, str]:
        if name not in FUNCTIONS:
            self._refuse(f"the unknown function {name!r}", text)
        count, cpp, python = FUNCTIONS[name]
        if len(arguments) != count:
            self._refuse(f"{name} without its {count} arguments", text)
        self.needs_float |= name not in _ANY_TYPE
        kinds = ["truth" if name == "where" else "number"] + ["number"] * (count - 1)
        parts = [self._typed(k, x, text) for k, x in zip(kinds, arguments, strict=True)]
        kind = "truth" if name in ("isnan", "isinf") else "number"
        return (
            kind,
            f"{cpp}({', '.join(part[1] for part in parts)})",
            f"{python}({', '.join(part[2] for part in parts)})",
        )

    def _name(self, name: str, text: str) -> tuple[str, str, str]:
        if name in self.outputs and name not in self.known:
            self.reads.append(name)
            self.known[name] = "number"
        elif name not in self.known:
            self._refuse(f"the unknown name {name!r}", text)
        self.uses_index |= name == "index"
        return self.known[name], f"v_{name}", f"v_{name}"

    def _constant(self, value: int | float) -> tuple[str, str, str]:
        self.needs_float |= isinstance(value, float)
        if value not in self.constants:
            self.constants.append(value)
        suffix = "ull" if isinstance(value, int) and value >= 2**31 else ""
        index = self.constants.index(value)
        return "number", f"T({value!r}{suffix})", f"C[{index}]"


_erf_of_one = numpy.frompyfunc(math.erf, 1, 1)


def _erf(x):
    """The error function, which NumPy lacks, element by element."""
    return numpy.asarray(_erf_of_one(x), dtype=x.dtype)
