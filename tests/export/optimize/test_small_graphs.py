"""Rewrites on graphs of a few nodes: some match, others only look as if they did."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from headkit.export.optimize.passes import optimize

GENERATOR = np.random.default_rng(0)
CONSTANTS = {
    "kernel": GENERATOR.normal(size=(4, 4, 3, 3)),
    "packed": GENERATOR.normal(size=(4, 12)),
    "packed_bias": GENERATOR.normal(size=12),
    "matrix": GENERATOR.normal(size=(4, 4)),
    "first": GENERATOR.normal(size=(4, 1, 1)),
    "tokens": GENERATOR.normal(size=(4, 1)),
}
SMALL_GRAPHS = {
    "norm in front of padding": (
        "(float[batch, 4, 6, 6] x) => (float[batch, 4, 6, 6] y)",
        """n = BatchNormalization(x, s, b, m, v)
        y = Conv<pads=[1, 1, 1, 1]>(n, kernel)""",
        {"BatchNormalization": 1, "Conv": 1},
    ),
    "norm in front of a convolution": (
        "(float[batch, 4, 6, 6] x) => (float[batch, 4, 4, 4] y)",
        """n = BatchNormalization(x, s, b, m, v)
        y = Conv(n, kernel, b)""",
        {"Conv": 1},
    ),
    "norm that is read elsewhere": (
        "(float[batch, 4, 6, 6] x) => (float[batch, 4, 4, 4] y, float[batch, 4, 6, 6] n)",
        """n = BatchNormalization(x, s, b, m, v)
        y = Conv(n, kernel)""",
        {"BatchNormalization": 1, "Conv": 1},
    ),
    "channels that are rolled": (
        "(float[batch, 6, 4] x) => (float[batch, 6, 4] y)",
        """a = Slice(x, one, four, two)
        c = Slice(x, zero, one, two)
        r = Concat<axis=2>(a, c)
        y = Relu(r)""",
        {"Slice": 2, "Concat": 1, "Relu": 1},
    ),
    "tokens that are rolled": (
        "(float[batch, 6, 4] x) => (float[batch, 6, 4] y)",
        """a = Slice(x, one, six, one)
        c = Slice(x, zero, one, one)
        r = Concat<axis=1>(a, c)
        y = Relu(r)""",
        {"Reshape": 2, "Gather": 1, "Relu": 1},
    ),
    "tokens that are rolled one way and back": (
        "(float[batch, 6, 4] x) => (float[batch, 6, 4] y)",
        """a = Slice(x, zero, two, one)
        c = Slice(x, two, four, one)
        d = Slice(x, four, six, one)
        r = Concat<axis=1>(d, a, c)
        z = Relu(r)
        e = Slice(z, zero, two, one)
        f = Slice(z, two, four, one)
        g = Slice(z, four, six, one)
        t = Concat<axis=1>(f, g, e)
        y = Relu(t)""",
        {"Reshape": 4, "Gather": 2, "Relu": 2},
    ),
    "tokens that occur twice": (
        "(float[batch, 4, 4] x) => (float[batch, 5, 4] y)",
        """a = Slice(x, zero, one, one)
        r = Concat<axis=1>(x, a)
        y = Relu(r)""",
        {"Slice": 1, "Concat": 1, "Relu": 1},
    ),
    "tokens of other images": (
        "(float[batch, 6, 4] x) => (float[batch, 6, 4] y)",
        """a = Slice(x, one, six, zero)
        c = Slice(x, zero, one, zero)
        r = Concat<axis=0>(a, c)
        y = Relu(r)""",
        {"Slice": 2, "Concat": 1, "Relu": 1},
    ),
    "operand that is read elsewhere": (
        "(float[batch, 2, 5, 3] x) => (float[batch, 2, 5, 5] y, float[batch, 2, 3, 5] t)",
        """t = Transpose<perm=[0, 1, 3, 2]>(x)
        y = MatMul(x, t)""",
        {"Transpose": 1, "MatMul": 1},
    ),
    "other axes": (
        "(float[batch, 3, 3, 3] x) => (float[batch, 3, 3, 3] y)",
        """t = Transpose<perm=[0, 2, 1, 3]>(x)
        y = MatMul(x, t)""",
        {"Transpose": 1, "MatMul": 1},
    ),
    "result that is transposed": (
        "(float[batch, 2, 5, 3] x, float[batch, 2, 3, 7] w) => (float[batch, 2, 7, 5] y)",
        """p = MatMul(x, w)
        y = Transpose<perm=[0, 1, 3, 2]>(p)""",
        {"FusedMatMul": 1},
    ),
    "factors behind a linear layer": (
        "(float[batch, 5, 4] x) => (float[batch, 5, 4] y)",
        """p = MatMul(x, matrix)
        a = Add(b, p)
        f = Mul(a, s)
        y = Add(f, x)""",
        {"MatMul": 1, "Add": 2},
    ),
    "factors of channels that came first": (
        "(float[batch, 5, 6, 4] x) => (float[batch, 4, 5, 6] y)",
        """p = MatMul(x, matrix)
        t = Transpose<perm=[0, 3, 1, 2]>(p)
        f = Mul(first, t)
        y = Relu(f)""",
        {"MatMul": 1, "Transpose": 1, "Relu": 1},
    ),
    "factors of tokens": (
        "(float[batch, 4, 4] x) => (float[batch, 4, 4] y)",
        """p = MatMul(x, matrix)
        f = Mul(p, tokens)
        y = Relu(f)""",
        {"MatMul": 1, "Mul": 1, "Relu": 1},
    ),
    "factors of what is read elsewhere": (
        "(float[batch, 5, 4] x) => (float[batch, 5, 4] y, float[batch, 5, 4] p)",
        """p = MatMul(x, matrix)
        f = Mul(p, s)
        y = Relu(f)""",
        {"MatMul": 1, "Mul": 1, "Relu": 1},
    ),
    "random factors": (
        "(float[batch, 5, 4] x) => (float[batch, 5, 4] y)",
        """p = MatMul(x, matrix)
        r = RandomUniform<shape=[4], seed=1.0>()
        f = Mul(p, r)
        y = Relu(f)""",
        {"MatMul": 1, "RandomUniform": 1, "Mul": 1, "Relu": 1},
    ),
    "sum with a concatenation of three parts": (
        "(float[batch, 2, 5, 6] x) => (float[batch, 2, 5, 6] y)",
        """a = Slice(x, zero, two, three)
        c = Slice(x, two, four, three)
        d = Slice(x, four, six, three)
        r = Concat<axis=3>(c, d, a)
        f = Mul(x, half)
        g = Mul(r, half)
        y = Add(f, g)""",
        {"Slice": 3, "Concat": 1, "Mul": 2, "Add": 1},
    ),
    "axes in reverse order": (
        "(float[batch, 5, 4] x) => (float[4, 5, batch] y)",
        """p = MatMul(x, matrix)
        t = Transpose(p)
        y = Mul(t, first)""",
        {"MatMul": 1, "Transpose": 1, "Mul": 1},
    ),
    "heads that nothing attends to": (
        "(float[batch, 5, 4] x) => (float[batch, 2, 5, 6] y)",
        """p = MatMul(x, packed)
        r = Reshape(p, heads_of_six)
        y = Transpose<perm=[0, 2, 1, 3]>(r)""",
        {"MatMul": 1, "Reshape": 1, "Transpose": 1},
    ),
    "image whose scales give another size": (
        "(float[batch, 2, 7, 7] x) => (float[batch, 2, 13, 13] y)",
        'y = Resize<mode="linear">(x, , odd)',
        {"Resize": 1},
    ),
    "large image": (
        "(float[batch, 2, 16, 16] x) => (float[batch, 2, 32, 32] y)",
        'y = Resize<mode="linear">(x, , scales)',
        {"Resize": 1},
    ),
    "small image": (
        "(float[batch, 2, 6, 6] x) => (float[batch, 2, 12, 12] y)",
        'y = Resize<mode="cubic">(x, , scales)',
        {"Reshape": 2, "MatMul": 1},
    ),
}

ATTENTION = """
    p = MatMul(x, packed)
    a = Add(p, packed_bias)
    r = Reshape(a, heads)
    t = Transpose<perm=[2, 0, 3, 1, 4]>(r)
    q0 = Slice(t, zero, one, zero)
    q = Squeeze(q0, zero)
    k0 = Slice(t, one, two, zero)
    keys = Squeeze(k0, zero)
    v0 = Slice(t, two, three, zero)
    values = Squeeze(v0, zero)
    turned = Transpose<perm=[0, 1, 3, 2]>(keys)
    scores = MatMul(q, turned)
    shares = Softmax<axis=3>(scores)
    o = MatMul(shares, values)
    u = Transpose<perm=[0, 2, 1, 3]>(o)
    j = Reshape(u, joined)
"""
PROJECTED = ATTENTION + "z = MatMul(j, matrix)\ny = Add(z, b)"
_APART = {"MatMul": 5, "Reshape": 4, "Transpose": 4, "FusedMatMul": 1, "Softmax": 1}
SMALL_GRAPHS |= {
    f"attention: {what}": (
        f"(float[batch, 5, 4] x) => (float[batch, 5, 4] y{also})",
        body,
        expected,
    )
    for what, also, body, expected in (
        ("no inner value is read", "", PROJECTED, {**_APART, "Add": 2}),
        ("keys are read", ", float[batch, 2, 5, 2] keys", PROJECTED, {**_APART, "Add": 3}),
        ("values are read", ", float[batch, 2, 5, 2] values", PROJECTED, {**_APART, "Add": 3}),
        ("means of values are read", ", float[batch, 5, 4] j", PROJECTED, {**_APART, "Add": 3}),
        (
            "only means of values are read",
            "",
            ATTENTION + "y = Relu(j)",
            {**_APART, "MatMul": 4, "Add": 2, "Relu": 1},
        ),
    )
}


@pytest.mark.parametrize("name", SMALL_GRAPHS)
def test_small_graph_has_these_operators_and_the_same_numbers_after_rewriting(name: str) -> None:
    signature, body, expected = SMALL_GRAPHS[name]
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        agraph {signature} <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
        int64[1] three = {{3}}, int64[1] four = {{4}}, int64[1] six = {{6}},
        int64[5] heads = {{-1, 5, 3, 2, 2}}, int64[3] joined = {{-1, 5, 4}},
        int64[4] heads_of_six = {{-1, 5, 2, 6}}, float[4] scales = {{1, 1, 2, 2}},
        float[4] odd = {{1, 1, 1.9, 1.9}}, float half = {{0.5}},
        float[4] s = {{0.5, 2, 1, 3}}, float[4] b = {{0.1, 0.2, -1, 2}},
        float[4] m = {{1, -1, 0.5, 2}}, float[4] v = {{1, 4, 0.3, 2}}> {{
        {body}
        }}"""
    )
    for name, array in CONSTANTS.items():
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        if name in body:
            model.graph.initializer.append(tensor)
    model = onnx.shape_inference.infer_shapes(model)
    optimized = optimize(model)
    assert Counter(node.op_type for node in optimized.graph.node) == expected
    for batch in (1, 3):
        feed = {
            given.name: GENERATOR.normal(
                size=(batch, *(d.dim_value for d in given.type.tensor_type.shape.dim[1:]))
            ).astype(np.float32)
            for given in model.graph.input
        }
        found, wanted = (
            ort.InferenceSession(m.SerializeToString()).run(None, feed) for m in (optimized, model)
        )
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() < 1e-4 * max(1, np.abs(other).max())


def masked(body: str, mask: float) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return attention scores of five queries and keys, before and after ``optimize``.

    A mask hides the last key from the first query.
    """
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        agraph (float[batch, 2, 5, 3] q, float[batch, 2, 3, 5] k) => (float[batch, 2, 5, 5] y)
        <float half = {{0.5}}, float ten = {{10}}, float[2, 1, 1] apart = {{0.5, 2}},
        float[5] back = {{0, 0, 0, 0, 85}}> {{
        s = MatMul(q, k)
        {body}
        y = Softmax<axis=3>(m)
        }}"""
    )
    added = np.random.default_rng(1).normal(size=(5, 5)).astype(np.float32)
    added[0, 4] = mask
    model.graph.initializer.append(onnx.numpy_helper.from_array(added, "mask"))
    model = onnx.shape_inference.infer_shapes(model)
    return model, optimize(model)


def mask_of(model: onnx.ModelProto) -> np.ndarray[Any, Any]:
    (node,) = (node for node in model.graph.node if node.op_type == "Add")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    (found,) = (constants[name] for name in node.input if name in constants)
    return found


@pytest.mark.parametrize("body", ["m = Add(s, mask)", "f = Mul(s, half) m = Add(mask, f)"])
def test_masked_keys_get_probability_zero(body: str) -> None:
    model, optimized = masked(body, -100)
    rng = np.random.default_rng(2)
    feed = {
        "q": rng.normal(size=(3, 2, 5, 3)).astype(np.float32),
        "k": rng.normal(size=(3, 2, 3, 5)).astype(np.float32),
    }
    furthest, _ = masked(body, float(np.finfo(np.float32).min))
    found, expected, hidden = (
        ort.InferenceSession(m.SerializeToString()).run(None, feed)[0]
        for m in (optimized, model, furthest)
    )
    assert np.abs(found - expected).max() < 1e-6
    # Exactly zero, as AVX2 gives after any such mask; AVX-512 would give a subnormal number.
    assert np.array_equal(found[:, :, 0, 4], hidden[:, :, 0, 4])
    assert expected[:, :, 0, 4].max() < np.finfo(np.float32).tiny
    before, after = mask_of(model), mask_of(optimized)
    assert (before == after).sum() == 24


@pytest.mark.parametrize(
    ("body", "mask"),
    [
        ("m = Add(s, mask)", -70),
        ("m = Add(s, mask)", -np.inf),
        ("m = Add(s, mask)", -1e4),
        ("f = Mul(s, ten) m = Add(f, mask)", -100),
        ("f = Mul(s, apart) m = Add(f, mask)", -100),
        ("a = Add(s, mask) m = Mul(a, half)", -100),
    ],
)
def test_other_constants_added_to_scores_stay(body: str, mask: float) -> None:
    model, optimized = masked(body, mask)
    assert np.array_equal(mask_of(model), mask_of(optimized))


def test_mask_that_another_constant_undoes_stays() -> None:
    model, optimized = masked("a = Add(s, mask) m = Add(a, back)", -90)
    assert list(optimized.graph.initializer) == list(model.graph.initializer)
