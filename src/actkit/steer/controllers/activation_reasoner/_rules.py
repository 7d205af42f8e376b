"""Propositional rules: what they say, and what follows from facts, with proofs."""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from actkit.core.errors import InputError

Conjunction = Literal["min", "product"]
Combine = Callable[[Iterable[float]], float]
Found = tuple[float, tuple[str, ...]]
"""Confidence of a formula that holds, and the literals that it rests on."""


@dataclass(frozen=True)
class Rule:
    """`if_` implies every name of `then`.

    Attributes:
        text: As it was written.
        if_: The premise.
        then: What follows.
    """

    text: str
    if_: ast.expr
    then: tuple[str, ...]


@dataclass(frozen=True)
class ProofStep:
    """One step of a proof: the rule by which a name follows, and from which literals."""

    name: str
    rule: str
    premises: tuple[str, ...]
    confidence: float

    def __str__(self) -> str:
        """Return the step in a line."""
        return f"{self.name} ({self.confidence:.2f}) from {', '.join(self.premises)}: {self.rule}"


@dataclass
class Closure:
    """What follows from facts.

    Attributes:
        confidence: Of every name that holds, facts included.
        steps: How each name that is no fact follows, in the order in which it was found.
        num_iterations: How many times the rules were gone through.
    """

    confidence: dict[str, float]
    steps: dict[str, ProofStep] = field(default_factory=dict)
    num_iterations: int = 0

    def proof(self, name: str) -> list[ProofStep]:
        """Return the steps that lead to a name, premises first; none for a fact.

        Raises:
            InputError: The name does not hold.
        """
        if name not in self.confidence:
            raise InputError(f"a proof is of what holds, got {name!r}")
        needed, asked = set[str](), [name]
        while asked:
            step = self.steps.get(asked.pop())
            if step is not None and step.name not in needed:
                needed.add(step.name)
                asked += step.premises
        return [step for step in self.steps.values() if step.name in needed]


def parsed(text: str) -> Rule:
    """Read a rule such as "bird AND NOT (penguin OR kiwi) IMPLIES flies AND sings".

    Raises:
        InputError: It is no such rule.
    """
    sides = re.split(r"\bIMPLIES\b", text)
    python = [re.sub(r"\b(AND|OR|NOT)\b", lambda m: m[0].lower(), s).strip() for s in sides]
    try:
        if_, then = (ast.parse(side, mode="eval").body for side in python)
        _names(if_)
        heads = then.values if isinstance(then, ast.BoolOp) and _is_and(then) else [then]
        return Rule(text, if_, tuple(_name(head) for head in heads))
    except (ValueError, SyntaxError) as error:
        raise InputError(
            "a rule must be names with AND, OR, NOT and brackets, then IMPLIES, then names with "
            f"AND, got {text!r}"
        ) from error


def closure(
    rules: Sequence[Rule], facts: Mapping[str, float], conjunction: Conjunction = "min"
) -> Closure:
    """Go through the rules until nothing more follows.

    NOT p holds where p does not follow. So that this has one meaning, whatever can lead to p is
    gone through before, and no name may rest on its own negation. Each iteration uses what the
    ones before found, so the order of the rules does not matter; a name keeps the confidence of
    its first proof, of the surest one if several rules prove it at once.

    Args:
        rules: Of `parsed`.
        facts: Confidence in (0, 1] of each name that is known to hold.
        conjunction: Confidence of an AND: the least sure part, or the product of the parts.

    Raises:
        InputError: A name rests on its own negation.
    """
    found = Closure(dict(facts))
    combine: Combine = min if conjunction == "min" else prod
    for layer in _layers(rules):
        waiting = list(layer)
        while waiting:
            found.num_iterations += 1
            shown = [(rule, _holds(rule.if_, found.confidence, combine)) for rule in waiting]
            fired = [(rule, proof) for rule, proof in shown if proof is not None]
            waiting = [rule for rule, proof in shown if proof is None]
            if not fired:
                break
            surest = sorted(fired, key=lambda pair: pair[1][0], reverse=True)
            for rule, (confidence, premises) in surest:
                for name in rule.then:
                    if name not in found.confidence:
                        found.confidence[name] = confidence
                        found.steps[name] = ProofStep(name, rule.text, premises, confidence)
    return found


def _holds(formula: ast.expr, known: Mapping[str, float], combine: Combine) -> Found | None:
    """Return the confidence of a formula and the literals it rests on, None if it does not hold."""
    if isinstance(formula, ast.Name):
        return (known[formula.id], (formula.id,)) if formula.id in known else None
    if isinstance(formula, ast.UnaryOp):
        denied = _holds(formula.operand, known, combine)
        return (1.0, (f"NOT {ast.unparse(formula.operand)}",)) if denied is None else None
    parts = formula.values if isinstance(formula, ast.BoolOp) else []
    shown = [_holds(part, known, combine) for part in parts]
    proofs = [proof for proof in shown if proof is not None]
    if not _is_and(formula):
        return max(proofs, key=lambda proof: proof[0], default=None)
    if len(proofs) < len(parts):
        return None
    return combine(c for c, _ in proofs), tuple(name for _, names in proofs for name in names)


def _layers(rules: Sequence[Rule]) -> list[list[Rule]]:
    """Return the rules in layers such that what a rule negates is settled in layers before."""
    level = {name: 0 for rule in rules for name in rule.then}
    for _ in range(len(level) + 1):
        before = dict(level)
        for rule in rules:
            needed = [level.get(n, 0) + (denied and n in level) for n, denied in _names(rule.if_)]
            least = max(*needed, *(level[name] for name in rule.then))
            level |= dict.fromkeys(rule.then, least)
        if level == before:
            order = sorted(set(level.values()))
            return [[rule for rule in rules if level[rule.then[0]] == n] for n in order]
    top = max(level, key=lambda name: level[name])
    raise InputError(f"no name may rest on its own negation, as {top!r} does")


def _names(formula: ast.expr, denied: bool = False) -> list[tuple[str, bool]]:
    """Return the names in a formula, and whether each stands below a NOT."""
    if isinstance(formula, ast.UnaryOp) and isinstance(formula.op, ast.Not):
        return _names(formula.operand, denied=True)
    if isinstance(formula, ast.BoolOp):
        return [pair for part in formula.values for pair in _names(part, denied)]
    return [(_name(formula), denied)]


def _name(formula: ast.expr) -> str:
    if not isinstance(formula, ast.Name):
        raise ValueError(f"{ast.unparse(formula)} is no name")
    return formula.id


def _is_and(formula: ast.expr) -> bool:
    return isinstance(formula, ast.BoolOp) and isinstance(formula.op, ast.And)
