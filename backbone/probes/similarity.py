"""Representation similarity: linear CKA, unbiased, from minibatches.

Centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) compares two sets of features of the same
inputs, of any widths: 1 for features equal up to rotation and scale, 0 for unrelated ones. The minibatch form
(Nguyen et al. 2021, arXiv 2010.15327, equations 2 and 3) averages the unbiased HSIC estimator (Song et al. 2012)
over batches, so that its expectation does not depend on the batch size and features need not be stored.

Shapes: n inputs of a batch, P and Q features of an input (any number of dimensions, flattened).
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def gram(x_nP: Tensor) -> Tensor:
    """Linear Gram matrix of a batch, ``(n, n)`` float64, with a zero diagonal as the unbiased estimator requires.

    Features are centred over the batch first, which does not change the estimate but reduces rounding errors.
    """
    x_nP = x_nP.detach().flatten(1).double()
    x_nP = x_nP - x_nP.mean(dim=0)
    return (x_nP @ x_nP.T).fill_diagonal_(0.0)


def unbiased_hsic(k_nn: Tensor, l_nn: Tensor) -> Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion from two Gram matrices with zero diagonals.

    Raises:
        ValueError: fewer than four inputs, for which the estimator is undefined.
    """
    n = len(k_nn)
    if n < 4:
        raise ValueError(f"the unbiased estimate needs at least 4 inputs a batch, not {n}")
    rows_k, rows_l = k_nn.sum(dim=1), l_nn.sum(dim=1)
    total = (k_nn * l_nn).sum()
    total = total + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k @ rows_l) / (n - 2)
    return total / (n * (n - 3))


class MinibatchCKA:
    """CKA of every layer of one network with every layer of another (or the same), batch by batch.

    Example:
        >>> cka = MinibatchCKA()
        >>> for _ in range(3):
        ...     x = torch.randn(64, 8)
        ...     cka.update({"a": x}, {"a": x, "b": 3 * x})
        >>> [round(value, 6) for value in cka.compute()[0].tolist()]
        [1.0, 1.0]
    """

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.columns: list[str] = []
        self.batches = 0
        self._cross: Tensor = torch.zeros(0)
        self._own: tuple[Tensor, Tensor] = (torch.zeros(0), torch.zeros(0))

    def update(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
        """Add a batch: layer name -> features ``(n, …)`` of the same n inputs, in the same order.

        Raises:
            ValueError: fewer than four inputs, or mismatched numbers of inputs or layer names.
        """
        if len({len(features) for features in (*first.values(), *second.values())}) != 1:
            raise ValueError("every layer must hold features of the same inputs")
        if self.batches == 0:
            self.rows, self.columns = list(first), list(second)
        elif self.rows != list(first) or self.columns != list(second):
            raise ValueError("every batch must have the same layers")
        grams_k = [gram(features) for features in first.values()]
        grams_l = grams_k if second is first else [gram(features) for features in second.values()]
        cross = torch.stack([torch.stack([unbiased_hsic(k, l) for l in grams_l]) for k in grams_k])  # noqa: E741
        own_k = torch.stack([unbiased_hsic(k, k) for k in grams_k])
        own_l = torch.stack([unbiased_hsic(k, k) for k in grams_l])
        if self.batches == 0:
            self._cross, self._own = cross, (own_k, own_l)
        else:
            self._cross = self._cross + cross
            self._own = (self._own[0] + own_k, self._own[1] + own_l)
        self.batches += 1

    def compute(self) -> Tensor:
        """CKA matrix ``(layers of the first, layers of the second)``; NaN for layers with constant features."""
        if self.batches == 0:
            raise ValueError("no batch was given")
        own_k, own_l = self._own
        # The estimate of HSIC(K, K) can be slightly negative for nearly constant features.
        norm = (own_k.clamp(min=0)[:, None] * own_l.clamp(min=0)).sqrt()
        return torch.where(norm > 0, self._cross / norm, torch.nan)


def linear_cka(x_nP: Tensor, y_nQ: Tensor) -> float:
    """Unbiased linear CKA of one batch.

    >>> x = torch.randn(32, 5)
    >>> rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    >>> round(linear_cka(x, 7 * x @ rotation), 5)
    1.0
    """
    cka = MinibatchCKA()
    cka.update({"x": x_nP}, {"y": y_nQ})
    return float(cka.compute())
