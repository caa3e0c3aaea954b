"""Chunk forms against their step equations, written as plain loops in fp64 from the papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluvial.models.conv import short_conv
from fluvial.models.gated_delta import gated_delta
from fluvial.models.journal import Outer
from fluvial.models.mamba import selective_scan
from fluvial.models.mamba2 import ssd
from fluvial.models.rwkv7 import rwkv7

LENGTHS = [1, 2, 31, 32, 33, 64, 65, 130]
B, H, K, V = 2, 3, 5, 7


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("T", LENGTHS)
def test_gated_delta(T: int):
    q, k, v = rand(B, T, H, K, seed=1), F.normalize(rand(B, T, H, K, seed=2), dim=-1), rand(B, T, H, V, seed=3)
    g, beta, S0 = -rand(B, T, H, seed=4).abs(), rand(B, T, H, seed=5).sigmoid(), rand(B, H, K, V, seed=6)
    o, delta, S_end = gated_delta(q, k, v, g, beta, S0)
    for b in range(B):
        for h in range(H):
            S = S0[b, h].clone()
            for t in range(T):
                S = torch.exp(g[b, t, h]) * S
                d = beta[b, t, h] * (v[b, t, h] - k[b, t, h] @ S)
                S = S + torch.outer(k[b, t, h], d)
                torch.testing.assert_close(o[b, t, h], q[b, t, h] @ S, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(delta[b, t, h], d, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(S_end[b, h], S, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("T", LENGTHS)
def test_mamba(T: int):
    x, dt, A = rand(B, T, K, seed=1), rand(B, T, K, seed=2).abs(), -rand(K, V, seed=3).exp()
    Bs, Cs, h0 = rand(B, T, V, seed=4), rand(B, T, V, seed=5), rand(B, K, V, seed=6)
    y, h_end = selective_scan(x, dt, A, Bs, Cs, h0)
    for b in range(B):
        for e in range(K):
            h = h0[b, e].clone()
            for t in range(T):
                h = torch.exp(dt[b, t, e] * A[e]) * h + dt[b, t, e] * x[b, t, e] * Bs[b, t]
                torch.testing.assert_close(y[b, t, e], h @ Cs[b, t], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(h_end[b, e], h, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("T", LENGTHS)
def test_mamba2(T: int):
    X, a = rand(B, T, H, K, seed=1), -rand(B, T, H, seed=2).abs()
    Bs, Cs, h0 = rand(B, T, H, V, seed=3), rand(B, T, H, V, seed=4), rand(B, H, K, V, seed=5)
    y, h_end = ssd(X, a, Bs, Cs, h0)
    h = h0.clone()
    for t in range(T):
        for b in range(B):
            for n in range(H):
                h[b, n] = torch.exp(a[b, t, n]) * h[b, n] + torch.outer(X[b, t, n], Bs[b, t, n])
                torch.testing.assert_close(y[b, t, n], h[b, n] @ Cs[b, t, n], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(h_end, h, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("T", LENGTHS)
def test_rwkv7(T: int):
    r, k, v = rand(B, T, H, K, seed=1), rand(B, T, H, K, seed=2), rand(B, T, H, V, seed=3)
    log_w = -0.6065 * (3 * rand(B, T, H, K, seed=4)).sigmoid()  # down to the fastest decay there is
    kh, a = F.normalize(rand(B, T, H, K, seed=5), dim=-1), rand(B, T, H, K, seed=6).sigmoid()
    S0 = rand(B, H, K, V, seed=7)
    y, _, S_end = rwkv7(r, log_w, k, v, -kh, kh * a, S0)
    for b in range(B):
        for h in range(H):
            S = S0[b, h].T.clone()  # the paper's [V, K]
            for t in range(T):
                w = log_w[b, t, h].exp()
                S = S @ (torch.diag(w) - torch.outer(kh[b, t, h], a[b, t, h] * kh[b, t, h]))
                S = S + torch.outer(v[b, t, h], k[b, t, h])
                torch.testing.assert_close(y[b, t, h], S @ r[b, t, h], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(S_end[b, h], S.T, rtol=1e-10, atol=1e-10)


def test_the_chunk_forms_hold_in_fp32_at_the_fastest_decay():
    T = 200
    r, k, v = (rand(B, T, H, K, seed=s) for s in (1, 2, 3))
    log_w = torch.full((B, T, H, K), -0.6065, dtype=torch.float64)
    kh = F.normalize(rand(B, T, H, K, seed=5), dim=-1)
    arguments = (r, log_w, k, v, -kh, kh * 0.5, rand(B, H, K, K, seed=7))
    exact, single = rwkv7(*arguments), rwkv7(*(t.float() for t in arguments))
    for a, b in zip(exact, single, strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@pytest.mark.parametrize("T", [1, 5])
def test_short_conv(T: int):
    past, x, taps, bias = rand(B, 3, H, seed=4), rand(B, T, H, seed=1), rand(H, 4, seed=2), rand(H, seed=3)
    y, rows = short_conv(x, past, taps, bias, False)
    assert torch.equal(rows, torch.cat([past, x], 1))
    assert torch.equal(short_conv(x, past, taps, bias, True)[0], F.silu(y))
    for t in range(T):
        expected = bias + sum(taps[:, j] * rows[:, t + j] for j in range(4))
        torch.testing.assert_close(y[:, t], expected)


def test_long_strong_decays_keep_their_small_differences_in_fp32():
    """Sums of log decays reach thousands; differences of neighbours must not lose their digits."""
    T = 256
    q, k, v = rand(B, T, H, K, seed=1), F.normalize(rand(B, T, H, K, seed=2), dim=-1), rand(B, T, H, V, seed=3)
    g = -rand(B, T, H, seed=4).abs() * 40 * (rand(B, T, H, seed=8) > 0.5) - 1e-3
    beta, S0 = rand(B, T, H, seed=5).sigmoid(), rand(B, H, K, V, seed=6)
    exact = gated_delta(q, k, v, g, beta, S0)
    for a, b in zip(exact, gated_delta(*(t.float() for t in (q, k, v, g, beta, S0))), strict=True):
        assert (a - b).abs().max() <= 2e-6 * a.abs().max()
    delta = exact[1]
    for n in (200, 255):
        want = Outer(S0, ((k, delta),), g[..., None]).commit((n, n))
        got = Outer(S0.float(), ((k.float(), delta.float()),), g[..., None].float()).commit((n, n))
        assert (want - got).abs().max() <= 2e-6 * want.abs().max()
