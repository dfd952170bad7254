"""Derivatives of the expressions that kernels are written in.

An expression is text in the common subset of CUDA C++ and Python (see `Kernel`), so
Python's own parser reads it, and the rules of differentiation are a table.
"""

import ast

# d f(u) / du, in terms of the text of u; functions not named here are refused
DERIVATIVES = {
    "exp": "exp({u})",
    "log": "1 / ({u})",
    "log1p": "1 / (1 + ({u}))",
    "expm1": "exp({u})",
    "sqrt": "0.5 / sqrt({u})",
    "sin": "cos({u})",
    "cos": "-sin({u})",
    "tanh": "1 - tanh({u}) * tanh({u})",
    "erf": "1.1283791670955126 * exp(-({u}) * ({u}))",  # 2 / sqrt(pi)
    "abs": "where({u} > 0, 1, where({u} < 0, -1, 0))",
    "sigmoid": "sigmoid({u}) * (1 - sigmoid({u}))",
    "softplus": "sigmoid({u})",
}
# Functions that kernels do not have, stable for any argument
DEFINITIONS = {
    "sigmoid": "1 / (1 + exp(-({u})))",
    "softplus": "where({u} > 0, {u}, 0) + log1p(exp(-abs({u})))",
}


def derivative(expression: str, name: str) -> str:
    """The derivative of an expression with respect to one of its names."""
    return ast.unparse(differentiate(parse(expression), name))


def names(expression: str) -> list[str]:
    """The variables of an expression, in the order of their first use."""
    tree = parse(expression)
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    found = [
        (n.lineno, n.col_offset, n.id)
        for n in ast.walk(tree)
        if isinstance(n, ast.Name) and id(n) not in called
    ]
    return list(dict.fromkeys(name for _, _, name in sorted(found)))


def expand(expression: str) -> str:
    """The expression with `sigmoid` and `softplus` written out."""
    return ast.unparse(Expand().visit(parse(expression)))


class Expand(ast.NodeTransformer):
    def visit_Call(self, call):  # noqa: N802 - ast's name
        self.generic_visit(call)
        definition = DEFINITIONS.get(call.func.id)
        if definition is None:
            return call
        return parse(definition.format(u=f"({ast.unparse(call.args[0])})"))


def parse(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def differentiate(tree: ast.expr, name: str) -> ast.expr:
    """The rules: sum, product, quotient, chain, and `where`, whose condition counts
    as constant."""
    match tree:
        case ast.Name(id=found):
            return parse("1" if found == name else "0")
        case ast.Constant():
            return parse("0")
        case ast.UnaryOp(op=ast.USub(), operand=u):
            return multiply(parse("-1"), differentiate(u, name))
        case ast.BinOp(left=u, op=op, right=v):
            return of_operator(u, op, v, name)
        case ast.Call(func=ast.Name(id="where"), args=[condition, u, v]):
            du, dv = differentiate(u, name), differentiate(v, name)
            if ast.unparse(du) == ast.unparse(dv):
                return du
            return parse(f"where({unparse(condition, du, dv)})")
        case ast.Call(func=ast.Name(id=function), args=[u]) if function in DERIVATIVES:
            outer = parse(DERIVATIVES[function].format(u=f"({ast.unparse(u)})"))
            return multiply(outer, differentiate(u, name))
    raise ValueError(f"no rule to differentiate {ast.unparse(tree)!r}")


def of_operator(u, op, v, name) -> ast.expr:
    du, dv = differentiate(u, name), differentiate(v, name)
    if isinstance(op, ast.Add):
        return add(du, dv)
    if isinstance(op, ast.Sub):
        return add(du, multiply(parse("-1"), dv))
    if isinstance(op, ast.Mult):
        return add(multiply(du, v), multiply(u, dv))
    if isinstance(op, ast.Div):  # (u / v)' = u' / v - (u / v) v' / v
        first = du if is_number(du, 0) else ast.BinOp(du, op, v)
        ratio = ast.BinOp(ast.BinOp(u, op, v), op, v)
        return add(first, multiply(parse("-1"), multiply(ratio, dv)))
    raise ValueError(f"no rule to differentiate {type(op).__name__}")


def unparse(*trees) -> str:
    return ", ".join(ast.unparse(tree) for tree in trees)


def is_number(tree, value) -> bool:
    return isinstance(tree, ast.Constant) and tree.value == value


def add(u, v) -> ast.expr:
    if is_number(u, 0):
        return v
    return u if is_number(v, 0) else ast.BinOp(u, ast.Add(), v)


def multiply(u, v) -> ast.expr:
    if is_number(u, 0) or is_number(v, 0):
        return parse("0")
    if is_number(u, 1):
        return v
    return u if is_number(v, 1) else ast.BinOp(u, ast.Mult(), v)
