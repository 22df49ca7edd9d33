"""A reference of OneVision-Encoder and its connector, written from the format's description alone: NumPy, float64, loops.

Shares no code with the package. Positions and pixels in block order; weights by the names under `model.visual.`.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def angles(positions, *, head_dim, theta):
    """[N, D]: per patch a loop over the axes t, h, w with 4, 6, 6 of 16 shares of half a head."""
    share = head_dim // 2 // 16
    rows = []
    for position in positions:
        half = []
        for axis, parts in enumerate((4, 6, 6)):
            n = parts * share
            half += [float(position[axis]) / theta ** (i / n) for i in range(n)]
        rows.append(half + half)
    return np.array(rows, dtype=np.float64)


def rotate(x, angle):
    """(x1, x2, x3, x4) -> (-x2, x1, -x4, x3), by the angle of each lane. x: [N, D]."""
    turned = np.empty_like(x)
    for i in range(0, x.shape[1], 2):
        turned[:, i], turned[:, i + 1] = -x[:, i + 1], x[:, i]
    return x * np.cos(angle) + turned * np.sin(angle)


def grouped_attention(q, k, v, lengths):
    """One query at a time. q, k, v: [N, H, D]."""
    out = np.zeros_like(q)
    start = 0
    for length in lengths:
        for head in range(q.shape[1]):
            for i in range(start, start + length):
                scores = np.array([q[i, head] @ k[j, head] for j in range(start, start + length)])
                scores = np.exp((scores - scores.max()) / math.sqrt(q.shape[2]))
                out[i, head] = (scores / scores.sum()) @ v[start : start + length, head]
        start += length
    return out


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def encode(weights, pixels, positions, lengths, *, num_layers, num_heads, theta, eps):
    """Encoder outputs [N, C]."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    pixels = np.asarray(pixels, dtype=np.float64)
    kernel = w["embeddings.patch_embedding.weight"]
    x = np.einsum("ncyx,ocyx->no", pixels.reshape(len(pixels), *kernel.shape[1:]), kernel)
    x = layer_norm(x, w["layernorm_pre.weight"], w["layernorm_pre.bias"], eps)
    width = x.shape[1]
    angle = angles(positions, head_dim=width // num_heads, theta=theta)
    for i in range(num_layers):
        at = f"encoder.layers.{i}."
        y = layer_norm(x, w[at + "layer_norm1.weight"], w[at + "layer_norm1.bias"], eps)
        fused = y @ w[at + "self_attn.qkv.weight"].T + w[at + "self_attn.qkv.bias"]
        q, k, v = (fused[:, n * width : (n + 1) * width].reshape(len(x), num_heads, -1) for n in range(3))
        q = np.stack([rotate(q[:, h], angle) for h in range(num_heads)], axis=1)
        k = np.stack([rotate(k[:, h], angle) for h in range(num_heads)], axis=1)
        y = grouped_attention(q, k, v, lengths).reshape(len(x), width)
        x = x + y @ w[at + "self_attn.proj.weight"].T + w[at + "self_attn.proj.bias"]
        y = layer_norm(x, w[at + "layer_norm2.weight"], w[at + "layer_norm2.bias"], eps)
        y = gelu(y @ w[at + "mlp.fc1.weight"].T + w[at + "mlp.fc1.bias"])
        x = x + y @ w[at + "mlp.fc2.weight"].T + w[at + "mlp.fc2.bias"]
    return x


def merge(weights, hidden, *, merge, eps):
    """Tokens [K, E]: each m * m consecutive rows side by side."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    x = layer_norm(np.asarray(hidden, dtype=np.float64), w["merger.ln_q.weight"], w["merger.ln_q.bias"], eps)
    rows = np.stack([np.concatenate(x[i : i + merge**2]) for i in range(0, len(x), merge**2)])
    rows = gelu(rows @ w["merger.mlp.0.weight"].T + w["merger.mlp.0.bias"])
    return rows @ w["merger.mlp.2.weight"].T + w["merger.mlp.2.bias"]


def block_order(t, h, w, merge):
    """Raster index of each patch in block order, by loops."""
    return [
        (i * h + bh * merge + y) * w + bw * merge + x
        for i in range(t)
        for bh in range(h // merge)
        for bw in range(w // merge)
        for y in range(merge)
        for x in range(merge)
    ]


def relative_error(got, wanted):
    """Largest absolute error over the largest absolute value."""
    got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
