"""Array helpers: conversion, namespaces, the same random numbers on every library."""

from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest

from blocc import arrays
from blocc.errors import InvalidInputError


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_asarray_like_takes_library_dtype_and_device(dtype):
    like = strict.zeros(2, dtype=getattr(strict, dtype), device=strict.Device("device1"))
    for value in ([1, 2], np.array([1.0, 2.0]), strict.asarray([1.0, 2.0])):
        found = arrays.asarray_like(value, like)
        assert (found.dtype, found.device) == (like.dtype, like.device)
        assert arrays.to_numpy(found).tolist() == [1.0, 2.0]


def test_asarray_like_without_a_model_is_numpy_float64():
    for value in (1, [1, 2], (1.5,), np.array([1, 2]), np.float32(2.0)):
        assert arrays.asarray_like(value, None).dtype == np.float64
    assert arrays.asarray_like(np.array([1.0], dtype=np.float32), None).dtype == np.float32


@pytest.mark.parametrize("value", ["text", [[1, 2], [3]], object(), None, {"a": 1}, [1, None, "b"]])
def test_what_has_no_numeric_form_is_refused(value):
    with pytest.raises(InvalidInputError, match="expected numbers"):
        arrays.asarray_like(value, None)


@pytest.mark.parametrize("value", ["text", [[1, 2], [3]], {"a": 1}])
def test_what_has_no_numeric_form_is_refused_next_to_an_array(value):
    with pytest.raises(InvalidInputError, match="expected numbers"):
        arrays.asarray_like(value, np.zeros(2))


def test_to_numpy_copies_from_another_device_exactly():
    values = np.random.default_rng(0).normal(size=(3, 2))
    there = strict.asarray(values, device=strict.Device("device1"))
    found = arrays.to_numpy(there)
    assert type(found) is np.ndarray
    assert found.tobytes() == values.tobytes()


def test_random_numbers_are_the_same_on_every_library():
    here = np.zeros((2, 3))
    there = strict.zeros((2, 3), device=strict.Device("device1"))
    for draw in (arrays.random_normal, arrays.random_signs):
        assert draw(here, 5).tolist() == arrays.to_numpy(draw(there, 5)).tolist()
        assert draw(here, 5).tolist() != draw(here, 6).tolist()
    assert set(np.unique(arrays.random_signs(np.zeros(100), 0))) == {-1.0, 1.0}


def test_namespace_refuses_mixed_libraries_and_lists():
    with pytest.raises(InvalidInputError, match="one array library, got Array, ndarray"):
        arrays.namespace(np.zeros(1), strict.zeros(1))
    with pytest.raises(InvalidInputError, match="got list"):
        arrays.namespace([1.0])


def test_namespace_passes_over_scalars_and_none():
    assert arrays.namespace(1.0, None, np.zeros(1)) is arrays.namespace(np.zeros(1))


def test_precision_is_machine_epsilon():
    assert arrays.precision(np.zeros(1)) == np.finfo(np.float64).eps
    assert arrays.precision(np.zeros(1, dtype=np.float32)) == np.finfo(np.float32).eps


@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (np.nan, False), (np.inf, False)])
def test_all_finite(value, finite):
    assert arrays.all_finite(np.array([0.0, value])) is finite
