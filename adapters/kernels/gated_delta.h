// What both forms of Gated DeltaNet do to a token before its recurrence (models/gated_delta.py, `gated_delta_mix`).
#pragma once

#include "vector.h"

namespace {

INLINE void unit(const float *x, float *to, int64_t n, float eps, float scale) {
  const float square = dot(x, x, n), norm = std::sqrt(square);
  const float by = scale / (eps > 0.f ? std::sqrt(square + eps) : norm > 1e-6f ? norm : 1e-6f);
  for (int64_t i = 0; i < n; ++i) to[i] = x[i] * by;
}

// The strength of a write; `hard` clamps it to exactly 0 or 1 at the ends.
INLINE float strength(float b, bool hard, float scale) {
  const float gate = 1.f / (1.f + std::exp(-b)), hardened = 1.3f * gate - 0.2f;
  return (hard ? std::fmin(std::fmax(hardened, 0.f), 1.f) : gate) * scale;
}

INLINE float log_decay(float a, float A_log, float dt_bias) { return -std::exp(A_log) * softplus1(a + dt_bias); }

// o [V] through RMS norm with gain and the output gate z.
INLINE void finish(const float *o, const float *gain, const float *z, float *y, int64_t V, float eps) {
  const float by = 1.f / std::sqrt(dot(o, o, V) / static_cast<float>(V) + eps);
#pragma omp simd
  for (int64_t j = 0; j < V; ++j) y[j] = o[j] * by * gain[j] * silu1(z[j]);
}

}  // namespace
