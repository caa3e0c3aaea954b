// What both forms of Mamba-2 do around its recurrence (models/mamba2.py, `mamba2_mix`).
#pragma once

#include "threads.h"
#include "vector.h"

namespace {

INLINE float step_size(float dt, float bias, float low, float high) {
  return std::fmin(std::fmax(softplus1(dt + bias), low), high);
}

// y [P] = y + skip u, times the gate z unless that follows the norm.
INLINE void skip_and_gate(float *y, const float *u, float skip, const float *z, bool gate, int64_t P) {
#pragma omp simd
  for (int64_t i = 0; i < P; ++i) {
    const float value = y[i] + skip * u[i];
    y[i] = gate ? value * silu1(z[i]) : value;
  }
}

// y [tokens, norm_groups, width] through RMS norm with gain [norm_groups, width] or null, and the gate if it follows.
INLINE void norm_groups_of(float *y, const float *gain, const float *z, bool gate, int64_t tokens, int64_t norm_groups,
                           int64_t width, float eps, int64_t threads) {
  if (!gain && !gate) return;
  share_rows(tokens * norm_groups, threads, [&](int64_t part) {
    float *out = y + part * width;
    const float *weight = gain ? gain + part % norm_groups * width : nullptr, *gates = z + part * width;
    const float by = gain ? 1.f / std::sqrt(dot(out, out, width) / static_cast<float>(width) + eps) : 1.f;
    if (gain)
      for (int64_t i = 0; i < width; ++i) out[i] *= by * weight[i];
    if (gate)
      for (int64_t i = 0; i < width; ++i) out[i] *= silu1(gates[i]);
  });
}

}  // namespace
