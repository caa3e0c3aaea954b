// Elementary functions that a compiler turns into vector code: no branches, no library calls, within a few ulp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;

INLINE void streamed() {  // before another thread may read it
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Whether a new state [values], rows of `width`, is better streamed: the next token would not find it in a cache.
INLINE bool streams(const float *state, int64_t values, int64_t width) {
  return values >= 1 << 16 && width % LANES == 0 && reinterpret_cast<uintptr_t>(state) % 64 == 0;
}

INLINE float exp1(float x) {  // exact 0 below -87, finite above 88
  float c = x > 88.f ? 88.f : x;
  c = c < -87.f ? -87.f : c;
  const float shifted = c * 1.44269504f + 12582912.f, n = shifted - 12582912.f;  // n = round(c / ln 2)
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits << 23) + (127u << 23);
  float power;
  std::memcpy(&power, &bits, 4);
  return x < -87.f ? 0.f : p * power;
}

INLINE float sigmoid1(float x) { return 1.f / (1.f + exp1(-x)); }
INLINE float silu1(float x) { return x / (1.f + exp1(-x)); }

INLINE float tanh1(float x) {  // near 0 its series (Cephes), further out 1 - 2 / (e^2x + 1)
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float near = p * square * x + x, far = 1.f - 2.f / (exp1(2.f * x) + 1.f);
  return square < 0.39f ? near : far;
}

INLINE float softplus1(float x) {  // max(x, 0) + log(1 + e^-|x|), the logarithm as 2 atanh(t / (2 + t))
  const float t = exp1(x > 0.f ? -x : x), s = t / (2.f + t), q = s * s;
  float p = 1.f / 15.f;
  p = p * q + 1.f / 13.f;
  p = p * q + 1.f / 11.f;
  p = p * q + 1.f / 9.f;
  p = p * q + 1.f / 7.f;
  p = p * q + 1.f / 5.f;
  p = p * q + 1.f / 3.f;
  p = p * q + 1.f;
  return (x > 0.f ? x : 0.f) + 2.f * s * p;
}

INLINE float dot(const float *a, const float *b, int64_t n) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

INLINE float total(const float *a, int64_t n) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i];
  return sum;
}

}  // namespace
