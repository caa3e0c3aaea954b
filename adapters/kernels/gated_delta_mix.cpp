// Gated DeltaNet between its convolution and its output projection (models/gated_delta.py, `gated_delta_mix`), for a
// few tokens: unit q and k, gates, the recurrence, norm, output gate. A value head is one job and meets no other.
//
//     S <- e^g S;  delta = beta (v - k^T S);  S <- S + k delta^T;  o = q^T S
// o = e^g q^T S_old + (q.k) delta needs no sweep of its own.

#include "gated_delta.h"
#include "memory.h"

// rows [B, T, 2 Hk K + H V]: q | k | v; a, b [B, T, H]; z, y [B, T, H, V]; gain [V]; S0, S1 [B, H, K, V];
// padding [B, T] or null. Also put out for the journal: k [B, T, H, K], delta [B, T, H, V], g [B, T, H].
KERNEL(gated_delta_mix)(const float *rows, const float *a, const float *b, const float *z, const float *A_log,
                        const float *dt_bias, const float *gain, const float *S0, const uint8_t *padding, float *y,
                        float *k, float *delta, float *g, float *S1, int64_t B, int64_t T, int64_t H, int64_t Hk,
                        int64_t K, int64_t V, int64_t hard, float beta_scale, float qk_eps, float norm_eps,
                        int64_t threads) {
  const int64_t width = 2 * Hk * K + H * V;
  const float scale = 1.f / std::sqrt(static_cast<float>(K));
  const bool out = streams(S1, B * H * K * V, V);
  share(B * H, threads, [&](int64_t job) {
    const int64_t batch = job / H, head = job % H, key = head / (H / Hk) * K;
    alignas(64) float q[TOKENS * WIDTH], decays[TOKENS * WIDTH], beta[TOKENS], qk[TOKENS];
    const auto at = [&](int64_t t) { return (batch * T + t) * H + head; };
    const auto row = [&](int64_t t) { return rows + (batch * T + t) * width; };
    for (int64_t t = 0; t < T; ++t) {
      float *k_t = k + at(t) * K, *q_t = q + t * K;
      unit(row(t) + key, q_t, K, qk_eps, scale);
      unit(row(t) + Hk * K + key, k_t, K, qk_eps, 1.f);
      qk[t] = dot(q_t, k_t, K);
      const bool real = !padding || !padding[batch * T + t];
      beta[t] = real ? strength(b[at(t)], hard, beta_scale) : 0.f;
      g[at(t)] = real ? log_decay(a[at(t)], A_log[head], dt_bias[head]) : 0.f;
      const float decay = std::exp(g[at(t)]);
      for (int64_t i = 0; i < K; ++i) decays[t * K + i] = decay;
    }
    const int64_t further = job + threads < B * H ? threads * K * V : 0;
    blocks(V, [&](int64_t from, int64_t columns_) {
      const int64_t S = job * K * V + from;
      columns<1>(
          S0 + S, S1 + S, S0 + S + further, T, K, V, columns_, out, [&](int64_t t) { return Read{k + at(t) * K, q + t * K}; },
          [&](int64_t t, const Sums &sums) {
            const float *v = row(t) + 2 * Hk * K + head * V + from, decay = decays[t * K], b_t = beta[t], qk_t = qk[t];
            float *d = delta + at(t) * V + from, *o = y + at(t) * V + from;
#pragma omp simd
            for (int64_t j = 0; j < columns_; ++j) {
              d[j] = b_t * (v[j] - decay * sums.a[j]);
              o[j] = decay * sums.c[j] + qk_t * d[j];
            }
            return Update<1>{decays + t * K, {k + at(t) * K}, {d}};
          });
    });
    for (int64_t t = 0; t < T; ++t) finish(y + at(t) * V, gain, z + at(t) * V, y + at(t) * V, V, norm_eps);
    if (out) streamed();
  });
}
RECORDED(gated_delta_mix)
