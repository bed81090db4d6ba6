"""What metrics and the bootstrap are made of: log loss of a row, AUC within a user, and what rows must be like.

Shape legend: R rows, U users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrec_xd.errors import UserError

Array = NDArray[Any]

PROBABILITY_FLOOR = 2.0**-23
"""Log loss keeps probabilities this far from 0 and 1: the spacing of float32 at 1, in which models predict."""

_EXACT = 2.0**53
"""Sums of whole numbers are exact below."""

RULES = (
    "a score is NaN or infinite; the model diverged: lower the learning rate, or look for NaN among the inputs",
    "a label is neither 0 nor 1; binary metrics take no others: correct the label column",
    "a row weight is negative, NaN or infinite; weights are inverse sampling rates: correct the weight column",
)


def count_faults(score_R: Array, label_R: Array, weight_R: Array) -> Array:
    """How many rows break each of the RULES, int64 [len(RULES)]."""
    good = (
        np.isfinite(score_R),
        (label_R == 0) | (label_R == 1),
        np.isfinite(weight_R) & (weight_R >= 0),
    )
    return np.array([len(rows) - np.count_nonzero(rows) for rows in good])


def refuse_faults(name: str, faults: Array) -> None:
    """Stop if rows break one of the RULES.

    Raises:
        UserError: names the data (`name`), the number of rows, and the rule.
    """
    for count, rule in zip(faults.tolist(), RULES, strict=True):
        if count:
            raise UserError(f"{name}: in {count} rows {rule}")


def log_losses(score_R: Array, label_R: Array) -> Array:
    """Cross entropy of every row, in nats, float64 [R]; scores are truncated to probabilities first."""
    prob_R = np.clip(score_R.astype(np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -np.log(np.where(label_R == 1, prob_R, 1 - prob_R))


def ascending(key_R: Array) -> Array:
    """The places of rows in the order of their keys, equal ones in their own order; of floats, -0 comes before 0.

    By radix: 16 bits at a time, the lowest first, each in time that does not depend on the processor's vectors. Numbers
    close to each other need fewer turns.
    """
    if not len(key_R):
        return np.empty(0, dtype=np.int64)
    bits_R = _ordered_bits(key_R)
    bits_R = bits_R - bits_R.min()
    order_R: Array | None = None
    for shift in range(0, max(1, int(bits_R.max()).bit_length()), 16):
        digit_R = (bits_R >> bits_R.dtype.type(shift)).astype(np.uint16)
        if order_R is None:
            order_R = np.argsort(digit_R, kind="stable")
        else:
            order_R = order_R[np.argsort(digit_R[order_R], kind="stable")]
    assert order_R is not None
    return order_R


def _ordered_bits(key_R: Array) -> Array:
    """Unsigned integers in the order of the keys."""
    if key_R.dtype.kind == "f":
        key_R = key_R.astype(np.float64 if key_R.itemsize > 4 else np.float32, copy=False)
    elif key_R.dtype.kind != "u":
        key_R = key_R.astype(np.int64, copy=False)
    unsigned = np.dtype(f"u{key_R.itemsize}").type
    bits_R: Array = key_R.view(unsigned)
    if key_R.dtype.kind == "u":
        return bits_R
    # Negative integers come first; of negative floats, the larger the bits, the lower the number.
    sign = unsigned(1 << (8 * key_R.itemsize - 1))
    bits_R = bits_R ^ (sign if key_R.dtype.kind == "i" else np.where(bits_R >= sign, ~unsigned(0), sign))
    return bits_R


def run_starts(*keys: Array) -> Array:
    """Index of the first row of each run of rows with equal keys."""
    new_R = np.zeros(len(keys[0]), dtype=bool)
    new_R[:1] = True
    for key_R in keys:
        new_R[1:] |= key_R[1:] != key_R[:-1]
    return np.flatnonzero(new_R)


def auc_by_user(score_R: Array, label_R: Array, user_R: Array, weight_R: Array) -> tuple[Array, Array, Array]:
    """AUC within every user: the weighted share of (positive, negative) pairs in the right order, ties half.

    Args:
        score_R: any real scores, **ascending**.
        label_R: 0 or 1.
        user_R: integers.
        weight_R: not negative; a pair weighs the product of its rows.

    Returns:
        User ids [U], ascending; AUC [U], NaN for users without both classes; summed row weights [U].
    """
    order = ascending(user_R)
    user_R, score_R = user_R[order], score_R[order]
    positive_R = (label_R * weight_R)[order].astype(np.float64)
    negative_R = weight_R[order] - positive_R
    tie = run_starts(user_R, score_R)
    first_U = run_starts(user_R[tie])
    positive, negative = np.add.reduceat(positive_R, tie), np.add.reduceat(negative_R, tie)
    below = _sums_before(negative, first_U)
    pairs_U = np.add.reduceat(positive, first_U) * np.add.reduceat(negative, first_U)
    ordered_U = np.add.reduceat(positive * (below + negative / 2), first_U)
    auc_U = np.divide(ordered_U, pairs_U, out=np.full(len(first_U), np.nan), where=pairs_U > 0)
    return user_R[tie][first_U], auc_U, np.add.reduceat(positive + negative, first_U)


def _sums_before(value_R: Array, first_U: Array) -> Array:
    """Sum of all earlier values of the same user, [R].

    Of whole numbers, it is the difference of two places of one long running sum. Else each user is summed alone: such a
    difference would lose whatever is small next to the users before.

    Args:
        value_R: values, the rows of a user side by side.
        first_U: index of each user's first row, ascending.
    """
    length_U = np.diff(first_U, append=len(value_R))
    if np.array_equal(value_R, np.floor(value_R)):
        up_to_R = np.cumsum(value_R)
        if len(up_to_R) and up_to_R[-1] < _EXACT:
            up_to_R -= value_R
            before_R: Array = up_to_R - np.repeat(up_to_R[first_U], length_U)
            return before_R
    before_R = np.zeros(len(value_R))
    width_U = 2 ** np.ceil(np.log2(length_U)).astype(np.int64)
    padded = np.append(value_R, np.zeros(width_U.max(initial=0)))
    for width in np.unique(width_U[length_U > 1]).tolist():  # users of similar length: few turns, little padding
        users = width_U == width
        later = np.arange(1, width)
        place = first_U[users, None] + later
        inside = later < length_U[users, None]
        before_R[place[inside]] = np.cumsum(padded[place - 1], axis=1)[inside]
    return before_R
