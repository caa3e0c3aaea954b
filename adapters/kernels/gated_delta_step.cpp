// Gated DeltaNet for a few tokens (decode, a speculated handful): the recurrence of models/gated_delta.py step by step.
//
//     S <- e^g S;  delta = beta (v - k^T S);  S <- S + k delta^T;  o = q^T S           S [K, V] per head
//
// Columns of S never meet, so a head is cut into blocks of columns that stay in the nearest cache. One sweep over a
// block writes token t's update and already reads token t+1's k^T S and q^T S, so T tokens take T + 1 sweeps: the first
// reads the old state from memory, the second writes the new one, and o = e^g q^T S + (q.k) delta needs no sweep of its
// own. The order of additions never depends on B, H or the number of threads, so neither do the results.

#include "kernels.h"

#include <algorithm>
#include <cmath>

namespace {

constexpr int64_t BLOCK = 64;  // columns; 128 rows of them are 32 KB
constexpr int BAND = 8;        // rows of S per pass over the accumulators

struct Sums {  // k^T S and q^T S of the next token
  alignas(64) float k[BLOCK];
  alignas(64) float q[BLOCK];
};

struct Update {  // S <- decay S + k delta^T
  float decay;
  const float *k, *delta;
};

struct Next {  // the token whose sums are taken
  const float *k, *q;
};

// `rows` rows of one sweep, from [rows, width] to the same rows of `to`.
template <int rows, bool WRITE, bool READ>
INLINE void band(const float *from, float *to, int64_t stride, int64_t width, Update now, Next next, int64_t row,
                 Sums &sums) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    float k_sum = READ ? sums.k[j] : 0.f, q_sum = READ ? sums.q[j] : 0.f;
#pragma GCC unroll 8
    for (int64_t i = row; i < row + rows; ++i) {
      float s = from[i * stride + j];
      if (WRITE) to[i * stride + j] = s = now.decay * s + now.k[i] * now.delta[j];
      if (READ) k_sum += next.k[i] * s, q_sum += next.q[i] * s;
    }
    if (READ) sums.k[j] = k_sum, sums.q[j] = q_sum;
  }
}

template <bool WRITE, bool READ>
INLINE void sweep(const float *from, float *to, int64_t K, int64_t stride, int64_t width, Update now, Next next,
                  Sums &sums) {
  int64_t row = 0;
  for (; row + BAND <= K; row += BAND) band<BAND, WRITE, READ>(from, to, stride, width, now, next, row, sums);
  for (; row < K; ++row) band<1, WRITE, READ>(from, to, stride, width, now, next, row, sums);
}

INLINE float dot(const float *a, const float *b, int64_t n) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// All T tokens of `width` columns of one head; pointers stand at the head's first token and the block's first column.
INLINE void columns(const float *q, const float *k, const float *v, const float *g, const float *beta, const float *S0,
                    float *o, float *delta, float *S1, int64_t T, int64_t H, int64_t K, int64_t V, int64_t width) {
  Sums sums{};
  sweep<false, true>(S0, S1, K, V, width, Update{}, Next{k, q}, sums);
  for (int64_t t = 0; t < T; ++t, q += H * K, k += H * K, v += H * V, o += H * V, delta += H * V) {
    const float decay = std::exp(g[t * H]), b = beta[t * H], qk = dot(q, k, K);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      delta[j] = b * (v[j] - decay * sums.k[j]);
      o[j] = decay * sums.q[j] + qk * delta[j];
      sums.k[j] = sums.q[j] = 0.f;
    }
    const float *from = t ? S1 : S0;
    const Update now{decay, k, delta};
    if (t + 1 < T)
      sweep<true, true>(from, S1, K, V, width, now, Next{k + H * K, q + H * K}, sums);
    else
      sweep<true, false>(from, S1, K, V, width, now, Next{}, sums);
  }
}

}  // namespace

// q, k [B, T, H, K]; v, o, delta [B, T, H, V]; g, beta [B, T, H]; S0, S1 [B, H, K, V]; outputs never overlap inputs.
KERNEL(gated_delta_step)(const float *q, const float *k, const float *v, const float *g, const float *beta,
                         const float *S0, float *o, float *delta, float *S1, int64_t B, int64_t T, int64_t H, int64_t K,
                         int64_t V, int64_t threads) {
  const int64_t blocks = (V + BLOCK - 1) / BLOCK, jobs = B * H * blocks;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t job = 0; job < jobs; ++job) {
    const int64_t head = job / blocks, from = job % blocks * BLOCK;
    const int64_t row = head / H * T * H + head % H, out = row * V + from, S = head * K * V + from;
    const auto run = [&](int64_t width) {
      columns(q + row * K, k + row * K, v + out, g + row, beta + row, S0 + S, o + out, delta + out, S1 + S, T, H, K, V,
              width);
    };
    if (V - from >= BLOCK)
      run(BLOCK);  // a width that the compiler knows
    else
      run(V - from);
  }
}
