// RWKV-7's time mix between its projections (models/rwkv7.py, `rwkv7_mix`), for a few tokens: gates, unit keys, the
// recurrence, group norm, bonus, output gate. A head is one job and meets no other.
//
//     z = alpha^T S;  S <- diag(w) S + k v^T + b z^T;  y = r^T S                 S [K, V], alpha = -kh, b = kh a
// y = (r w)^T S_old + (r.k) v + (r.b) z needs no sweep of its own.

#include "memory.h"
#include "rwkv7.h"

// r, w, k, v, a, g, y [B, T, H * K], w and a before their sigmoids; v_first, v_gate the same or null (the first layer);
// k_k, k_a, r_k, gain, shift [H * K]; S0, S1 [B, H, K, K]; padding [B, T] or null. Also put out for the journal, the
// same shape as y: k_in, v_in, b, z, log_w.
KERNEL(rwkv7_mix)(const float *r, const float *w, const float *k, const float *v, const float *a, const float *g,
                  const float *v_first, const float *v_gate, const float *k_k, const float *k_a, const float *r_k,
                  const float *gain, const float *shift, const float *S0, const uint8_t *padding, float *y, float *k_in,
                  float *v_in, float *b, float *z, float *log_w, float *S1, int64_t B, int64_t T, int64_t H, int64_t K,
                  float eps, int64_t threads) {
  const bool out = streams(S1, B * H * K * K, K);
  share(B * H, threads, [&](int64_t job) {
    const int64_t batch = job / H, head = job % H * K;
    alignas(64) float alpha[TOKENS * WIDTH], rw[TOKENS * WIDTH], decay[TOKENS * WIDTH];
    const Weights by{k_k + head, k_a + head, r_k + head, gain + head, shift + head};
    float rk[TOKENS], rb[TOKENS], bonus[TOKENS];
    const auto at = [&](int64_t t) { return (batch * T + t) * H * K + head; };
    for (int64_t t = 0; t < T; ++t) {
      const int64_t from = at(t);
      const float real = padding && padding[batch * T + t] ? 0.f : 1.f;
      float *alpha_t = alpha + t * K, *rw_t = rw + t * K, *decay_t = decay + t * K;
      const Token x{r + from, w + from, k + from, v + from, a + from, v_gate ? v_first + from : nullptr,
                    v_gate ? v_gate + from : nullptr};
      bonus[t] = gates(x, by, real, Gated{k_in + from, v_in + from, b + from, log_w + from, alpha_t}, K);
#pragma omp simd
      for (int64_t i = 0; i < K; ++i) {
        decay_t[i] = exp1(log_w[from + i]);
        rw_t[i] = r[from + i] * decay_t[i];
      }
      rk[t] = dot(r + from, k_in + from, K), rb[t] = dot(r + from, b + from, K);
    }
    const int64_t further = job + threads < B * H ? threads * K * K : 0;
    blocks(K, [&](int64_t first, int64_t width) {
      const int64_t S = job * K * K + first;
      columns<2>(
          S0 + S, S1 + S, S0 + S + further, T, K, K, width, out, [&](int64_t t) { return Read{alpha + t * K, rw + t * K}; },
          [&](int64_t t, const Sums &sums) {
            const int64_t from = at(t) + first;
            const float rk_t = rk[t], rb_t = rb[t];
#pragma omp simd
            for (int64_t j = 0; j < width; ++j) {
              z[from + j] = sums.a[j];
              y[from + j] = sums.c[j] + rk_t * v_in[from + j] + rb_t * sums.a[j];
            }
            return Update<2>{decay + t * K, {k_in + at(t), b + at(t)}, {v_in + from, z + from}};
          });
    });
    for (int64_t t = 0; t < T; ++t)
      finish(y + at(t), v_in + at(t), bonus[t], g + at(t), by, y + at(t), K, eps);
    if (out) streamed();
  });
}
RECORDED(rwkv7_mix)
