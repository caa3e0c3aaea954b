// What both forms of RWKV-7's time mix do to a token of a head before and after its recurrence (models/rwkv7.py,
// `rwkv7_mix`).
#pragma once

#include "vector.h"

namespace {

struct Weights {  // one head's, [K] each
  const float *k_k, *k_a, *r_k, *gain, *shift;
};

struct Token {  // one head's, [K] each; w, a and v_gate before their sigmoids, v_first and v_gate null in the first layer
  const float *r, *w, *k, *v, *a, *v_first, *v_gate;
};

struct Gated {  // what follows from it
  float *k, *v, *b, *log_w, *alpha;
};

// Fills `to`; gives the bonus sum over r k~ r_k. `real`: 0 for padding, else 1.
INLINE float gates(Token x, Weights by, float real, Gated to, int64_t K) {
  float square = 0.f, bonus = 0.f;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < K; ++i) {
    const float kh = x.k[i] * by.k_k[i];
    to.alpha[i] = -kh;
    square += kh * kh;
  }
  const float norm = std::sqrt(square), unit = 1.f / (norm > 1e-12f ? norm : 1e-12f);
#pragma omp simd reduction(+ : bonus)
  for (int64_t i = 0; i < K; ++i) {
    const float rate = sigmoid1(x.a[i]), key = x.k[i] * (1.f + (rate - 1.f) * by.k_a[i]);
    to.alpha[i] *= unit;
    to.b[i] = real * -to.alpha[i] * rate;
    to.k[i] = real * key;
    to.log_w[i] = real * -0.60653066f * sigmoid1(x.w[i]);
    bonus += x.r[i] * key * by.r_k[i];
  }
  if (x.v_gate) {
#pragma omp simd
    for (int64_t i = 0; i < K; ++i) to.v[i] = x.v[i] + (x.v_first[i] - x.v[i]) * sigmoid1(x.v_gate[i]);
  } else {
    std::memcpy(to.v, x.v, sizeof(float) * K);
  }
  return bonus;
}

// o [K] through the group norm, with the bonus of v and the output gate g.
INLINE void finish(const float *o, const float *v, float bonus, const float *g, Weights by, float *y, int64_t K,
                   float eps) {
  const float mean = total(o, K) / static_cast<float>(K);
  float square = 0.f;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < K; ++i) square += (o[i] - mean) * (o[i] - mean);
  const float unit = 1.f / std::sqrt(square / static_cast<float>(K) + eps);
#pragma omp simd
  for (int64_t i = 0; i < K; ++i) y[i] = ((o[i] - mean) * unit * by.gain[i] + by.shift[i] + bonus * v[i]) * g[i];
}

}  // namespace
