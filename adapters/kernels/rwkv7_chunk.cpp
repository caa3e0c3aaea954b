// RWKV-7's time mix between its projections for many tokens: the chunk form of models/rwkv7.py, whose letters these are.
// Heads are jobs, some neighbours at a time, because a token's share of a page is small; S stays in panels of columns.
//
//     Z = (I - A_ab)^-1 (A_ak V + (alpha e^{P-}) S);  O = (r e^P) S + A_qk V + A_qb Z
//     S' = diag(e^{P_end}) (S + (k~ e^{-P})^T V + (b e^{-P})^T Z)
// A chunk of 16 keeps every exponent under 10.

#include <algorithm>

#include "rwkv7.h"
#include "threads.h"
#include "tiles.h"

namespace {

constexpr int64_t CHUNK = 16, BOTH = 2 * CHUNK;

struct Chunk {  // one head's, of n tokens
  float *queries;  // [BOTH, K]: alpha e^{P-}, then r e^P
  float *keys;     // [K, BOTH]: k~ e^{-P}, then b e^{-P}
  float *rise;     // [K]: e^{P_end}
  float *o;        // [CHUNK, K padded]
  alignas(64) float pairs[BOTH * BOTH];     // queries keys; alpha's rows before the diagonal, r's up to it
  alignas(64) float values[BOTH * PANEL];   // V, then Z

  void meet(int64_t n, int64_t K) {
    for (int64_t half = 0; half < BOTH; half += CHUNK)
      for (int64_t side = 0; side < BOTH; side += CHUNK)
        tiles(n, [&](auto R, int64_t i) {
          Tile<R, 1> tile;
          tile.clear();
          tile.add(queries + (half + i) * K, K, 1, keys + side, BOTH, K);
          float *to = pairs + (half + i) * BOTH + side;
          tile.write(to, BOTH);
          for (int64_t r = 0; r < R; ++r)
            for (int64_t j = i + r + (half ? 1 : 0); j < i + R; ++j) to[r * BOTH + j] = 0.f;
        });
  }

  // A panel of S [K, PANEL] after the chunk, whose V this takes; puts out o, and Z in `values`.
  void panel(float *S, float *o_panel, int64_t o_stride, int64_t n, int64_t K) {
    float *Z = values + CHUNK * PANEL;
    tiles(n, [&](auto R, int64_t i) {
      const float *alpha = queries + i * K, *pair = pairs + i * BOTH;
      Tile<R> tile;
      tile.clear();
      tile.add(alpha, K, 1, S, PANEL, K);
      tile.add(pair, BOTH, 1, values, PANEL, i + R);
      tile.add(pair + CHUNK, BOTH, 1, Z, PANEL, i);
      tile.substitute(pair + CHUNK + i, BOTH);
      tile.write(Z + i * PANEL, PANEL);
    });
    tiles(n, [&](auto R, int64_t i) {
      const float *r = queries + (CHUNK + i) * K, *pair = pairs + (CHUNK + i) * BOTH;
      Tile<R> tile;
      tile.clear();
      tile.add(r, K, 1, S, PANEL, K);
      tile.add(pair, BOTH, 1, values, PANEL, i + R);
      tile.add(pair + CHUNK, BOTH, 1, Z, PANEL, i + R);
      tile.write(o_panel + i * o_stride, o_stride);
    });
    tiles(K, [&](auto R, int64_t row) {
      Tile<R> tile;
      tile.read(S + row * PANEL, PANEL);
      tile.add(keys + row * BOTH, BOTH, 1, values, PANEL, n);
      tile.add(keys + row * BOTH + CHUNK, BOTH, 1, Z, PANEL, n);
      tile.scale(rise + row);
      tile.write(S + row * PANEL, PANEL);
    });
  }
};

}  // namespace

// As rwkv7_mix (rwkv7_mix.cpp).
KERNEL(rwkv7_chunk)(const float *r, const float *w, const float *k, const float *v, const float *a, const float *g,
                    const float *v_first, const float *v_gate, const float *k_k, const float *k_a, const float *r_k,
                    const float *gain, const float *shift, const float *S0, const uint8_t *padding, float *y,
                    float *k_in, float *v_in, float *b, float *z, float *log_w, float *S1, int64_t B, int64_t T,
                    int64_t H, int64_t K, float eps, int64_t threads) {
  const int64_t wide = padded(K), near = std::clamp<int64_t>(H / (2 * threads), 1, 8), jobs = (H + near - 1) / near;
  share(B * jobs, threads, [&](int64_t job) {
    const int64_t batch = job / jobs, low = job % jobs * near, high = std::min(H, low + near);
    float *states = scratch(near * K * wide + 2 * BOTH * K + CHUNK * wide + 4 * wide);
    Chunk c;
    c.queries = states + near * K * wide, c.keys = c.queries + BOTH * K, c.o = c.keys + BOTH * K, c.rise = c.o + CHUNK * wide;
    float *down = c.rise + wide, *alpha = down + wide, *P = alpha + wide;
    for (int64_t head = low; head < high; ++head)
      into_panels(S0 + (batch * H + head) * K * K, K, states + (head - low) * K * wide, K, K);
    for (int64_t step = 0; step < (T + CHUNK - 1) / CHUNK * (high - low); ++step) {
      const int64_t first = step / (high - low) * CHUNK, head = low + step % (high - low), channel = head * K;
      const auto at = [&](int64_t t) { return (batch * T + t) * H * K + channel; };
      const Weights by{k_k + channel, k_a + channel, r_k + channel, gain + channel, shift + channel};
      float *S = states + (head - low) * K * wide;
      const int64_t n = T - first < CHUNK ? T - first : CHUNK;
      float bonus[CHUNK];
      for (int64_t i = 0; i < K; ++i) P[i] = 0.f, c.rise[i] = 1.f;
      for (int64_t t = 0; t < n; ++t) {
        const int64_t from = at(first + t);
        const Token x{r + from, w + from, k + from, v + from, a + from, v_gate ? v_first + from : nullptr,
                      v_gate ? v_gate + from : nullptr};
        const float real = padding && padding[batch * T + first + t] ? 0.f : 1.f;
        bonus[t] = gates(x, by, real, Gated{k_in + from, v_in + from, b + from, log_w + from, alpha}, K);
        float *queries = c.queries + t * K, *after = queries + CHUNK * K;
#pragma omp simd
        for (int64_t i = 0; i < K; ++i) {
          queries[i] = alpha[i] * c.rise[i];
          P[i] += log_w[from + i];
          c.rise[i] = exp1(P[i]), down[i] = exp1(-P[i]);
          after[i] = r[from + i] * c.rise[i];
        }
        for (int64_t i = 0; i < K; ++i) {
          c.keys[i * BOTH + t] = k_in[from + i] * down[i];
          c.keys[i * BOTH + CHUNK + t] = b[from + i] * down[i];
        }
      }
      c.meet(n, K);
      for (int64_t from = 0; from < K; from += PANEL) {
        const int64_t columns = K - from < PANEL ? K - from : PANEL;
        for (int64_t t = 0; t < n; ++t) {
          scaled(v_in + at(first + t) + from, columns, 1.f, c.values + t * PANEL);
          if (first + CHUNK + t < T)
            for (int64_t j = from; j < from + columns; j += 16) {  // what the next chunk reads and writes of this token
              const int64_t next = at(first + CHUNK + t) + j;
              for (const float *x : {r, w, k, v, a, g}) soon(x + next);
              if (v_gate) soon(v_first + next), soon(v_gate + next);
              for (const float *x : {y, k_in, v_in, b, z, log_w}) soon_written(x + next);
            }
        }
        c.panel(S + from * K, c.o + from, wide, n, K);
        for (int64_t t = 0; t < n; ++t)
          std::memcpy(z + at(first + t) + from, c.values + (CHUNK + t) * PANEL, sizeof(float) * columns);
      }
      for (int64_t t = 0; t < n; ++t) {
        const int64_t from = at(first + t);
        finish(c.o + t * wide, v_in + from, bonus[t], g + from, by, y + from, K, eps);
      }
    }
    for (int64_t head = low; head < high; ++head)
      from_panels(states + (head - low) * K * wide, S1 + (batch * H + head) * K * K, K, K, K);
  });
}
