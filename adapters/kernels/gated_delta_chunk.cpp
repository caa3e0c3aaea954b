// Gated DeltaNet between its convolution and its output projection for many tokens: the chunk form of
// models/gated_delta.py, whose letters these are. A value head is one job; its S stays in panels of columns throughout.
//
//     delta = (I + N)^-1 (beta V - (beta e^G K) S);  O = (e^G Q) S + (tril(Q K^T) * D) delta;  N = stril(beta K K^T * D)

#include "gated_delta.h"
#include "threads.h"
#include "tiles.h"

namespace {

constexpr int64_t CHUNK = 32;

struct Chunk {  // one head's, of n tokens
  float *q, *k;         // [CHUNK, K], scaled once N and scores are there
  float *k_columns;     // [K, CHUNK]
  float *N, *scores;    // [CHUNK, CHUNK], N negated
  float *delta, *o;     // [CHUNK, PANEL], [CHUNK, V padded]
  double G[CHUNK];
  float beta[CHUNK], fall[CHUNK];
  alignas(64) float D[CHUNK * CHUNK];

  void weights(int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      float apart[CHUNK];
      for (int64_t j = 0; j < CHUNK; ++j) apart[j] = j <= i ? static_cast<float>(G[i] - G[j]) : 0.f;
#pragma omp simd
      for (int64_t j = 0; j < CHUNK; ++j) D[i * CHUNK + j] = j <= i ? exp1(apart[j]) : 0.f;
    }
  }

  // N and scores, then the scales of q and k.
  void pairs(int64_t n, int64_t K) {
    for (int64_t j = 0; j < n; j += 16)
      tiles(n - j, [&](auto R, int64_t row) {
        const int64_t i = j + row, at = i * CHUNK + j;
        Tile<R, 1> keys, queries;
        keys.clear(), queries.clear();
        keys.add(k + i * K, K, 1, k_columns + j, CHUNK, K);
        queries.add(q + i * K, K, 1, k_columns + j, CHUNK, K);
        for (int r = 0; r < R; ++r) {
          const Lanes weight = load(D + at + r * CHUNK);
          store(N + at + r * CHUNK, keys.at[r][0] * weight * all(-beta[i + r]));
          store(scores + at + r * CHUNK, queries.at[r][0] * weight);
          for (int64_t c = i + r; c < j + 16; ++c) N[(i + r) * CHUNK + c] = 0.f;
        }
      });
    for (int64_t i = 0; i < n; ++i) {
      const float rise = std::exp(static_cast<float>(G[i]));
      fall[i] = std::exp(static_cast<float>(G[n - 1] - G[i]));
      for (int64_t c = 0; c < K; ++c) q[i * K + c] *= rise, k[i * K + c] *= -beta[i] * rise;
    }
  }

  // A panel of S [K, PANEL] after the chunk; delta holds beta V and becomes e^{G_end - G} delta. Puts out o and `put`.
  template <typename Put>
  void panel(float *S, int64_t n, int64_t K, int64_t o_stride, float *o_panel, const Put &put) {
    tiles(n, [&](auto R, int64_t i) {
      Tile<R> tile;
      tile.read(delta + i * PANEL, PANEL);
      tile.add(k + i * K, K, 1, S, PANEL, K);
      tile.add(N + i * CHUNK, CHUNK, 1, delta, PANEL, i);
      tile.substitute(N + i * CHUNK + i, CHUNK);
      tile.write(delta + i * PANEL, PANEL);
    });
    tiles(n, [&](auto R, int64_t i) {
      Tile<R> tile;
      tile.clear();
      tile.add(q + i * K, K, 1, S, PANEL, K);
      tile.add(scores + i * CHUNK, CHUNK, 1, delta, PANEL, i + R);
      tile.write(o_panel + i * o_stride, o_stride);
    });
    for (int64_t i = 0; i < n; ++i) {
      put(i);
      for (int64_t j = 0; j < PANEL; ++j) delta[i * PANEL + j] *= fall[i];
    }
    const float decay = std::exp(static_cast<float>(G[n - 1]));
    tiles(K, [&](auto R, int64_t row) {
      Tile<R> tile;
      tile.read(S + row * PANEL, PANEL, decay);
      tile.add(k_columns + row * CHUNK, CHUNK, 1, delta, PANEL, n);
      tile.write(S + row * PANEL, PANEL);
    });
  }
};

}  // namespace

// As gated_delta_mix (gated_delta_mix.cpp).
KERNEL(gated_delta_chunk)(const float *rows, const float *a, const float *b, const float *z, const float *A_log,
                          const float *dt_bias, const float *gain, const float *S0, const uint8_t *padding, float *y,
                          float *k, float *delta, float *g, float *S1, int64_t B, int64_t T, int64_t H, int64_t Hk,
                          int64_t K, int64_t V, int64_t hard, float beta_scale, float qk_eps, float norm_eps,
                          int64_t threads) {
  const int64_t width = 2 * Hk * K + H * V, wide = padded(V);
  const float scale = 1.f / std::sqrt(static_cast<float>(K));
  share(B * H, threads, [&](int64_t job) {
    const int64_t batch = job / H, head = job % H, key = head / (H / Hk) * K;
    const auto at = [&](int64_t t) { return (batch * T + t) * H + head; };
    const auto row = [&](int64_t t) { return rows + (batch * T + t) * width; };
    float *S = scratch(K * wide + CHUNK * (3 * K + 2 * CHUNK + PANEL + wide)), *next = S + K * wide;
    const auto take = [&](int64_t floats) { return (next += floats) - floats; };
    Chunk c;
    c.q = take(CHUNK * K), c.k = take(CHUNK * K), c.k_columns = take(CHUNK * K);
    c.N = take(CHUNK * CHUNK), c.scores = take(CHUNK * CHUNK), c.delta = take(CHUNK * PANEL), c.o = take(CHUNK * wide);
    into_panels(S0 + job * K * V, V, S, K, V);
    for (int64_t first = 0; first < T; first += CHUNK) {
      const int64_t n = T - first < CHUNK ? T - first : CHUNK;
      double sum = 0.;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = first + i;
        const bool real = !padding || !padding[batch * T + t];
        unit(row(t) + key, c.q + i * K, K, qk_eps, scale);
        unit(row(t) + Hk * K + key, c.k + i * K, K, qk_eps, 1.f);
        std::memcpy(k + at(t) * K, c.k + i * K, sizeof(float) * K);
        for (int64_t e = 0; e < K; ++e) c.k_columns[e * CHUNK + i] = c.k[i * K + e];
        c.beta[i] = real ? strength(b[at(t)], hard, beta_scale) : 0.f;
        g[at(t)] = real ? log_decay(a[at(t)], A_log[head], dt_bias[head]) : 0.f;
        c.G[i] = sum += g[at(t)];
      }
      c.weights(n);
      c.pairs(n, K);
      for (int64_t from = 0; from < V; from += PANEL) {
        const int64_t columns = V - from < PANEL ? V - from : PANEL;
        for (int64_t i = 0; i < n; ++i)
          scaled(row(first + i) + 2 * Hk * K + head * V + from, columns, c.beta[i], c.delta + i * PANEL);
        c.panel(S + from * K, n, K, wide, c.o + from, [&](int64_t i) {
          std::memcpy(delta + at(first + i) * V + from, c.delta + i * PANEL, sizeof(float) * columns);
          const int64_t t = first + CHUNK + i;
          if (t >= T) return;
          for (int64_t j = from; j < from + PANEL; j += 16) {  // what the next chunk reads and writes of this token
            const float *next = row(t) + j;
            if (j < K) soon(next + key), soon(next + Hk * K + key), soon_written(k + at(t) * K + j);
            soon(next + 2 * Hk * K + head * V), soon(z + at(t) * V + j);
            soon_written(delta + at(t) * V + j), soon_written(y + at(t) * V + j);
          }
        });
      }
      for (int64_t i = 0; i < n; ++i)
        finish(c.o + i * wide, gain, z + at(first + i) * V, y + at(first + i) * V, V, norm_eps);
    }
    from_panels(S, S1 + job * K * V, V, K, V);
  });
}
