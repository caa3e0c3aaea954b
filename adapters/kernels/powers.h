// Powers of two of sixteen numbers at once, and the transposes that put channels side by side.
#pragma once

#include "lanes.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
INLINE Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE Lanes between(Lanes a, float low, float high) {
  return {_mm512_min_ps(_mm512_max_ps(a.v, _mm512_set1_ps(low)), _mm512_set1_ps(high))};
}
INLINE Lanes scaled_by(Lanes a, Lanes shifted) {  // a 2^n, n in the low bits of `shifted`
  const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), power))};
}
#elif defined(__AVX2__)
INLINE Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
INLINE __m256 between(__m256 a, float low, float high) {
  return _mm256_min_ps(_mm256_max_ps(a, _mm256_set1_ps(low)), _mm256_set1_ps(high));
}
INLINE Lanes between(Lanes a, float low, float high) { return {between(a.a, low, high), between(a.b, low, high)}; }
INLINE __m256 scaled_by(__m256 a, __m256 shifted) {
  const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), power));
}
INLINE Lanes scaled_by(Lanes a, Lanes shifted) { return {scaled_by(a.a, shifted.a), scaled_by(a.b, shifted.b)}; }
#elif defined(FLUVIAL_NEON)
INLINE Lanes operator+(Lanes a, Lanes b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vaddq_f32(a.v[i], b.v[i]);
  return a;
}
INLINE Lanes between(Lanes a, float low, float high) {
  for (int i = 0; i < 4; ++i) a.v[i] = vminnmq_f32(vmaxnmq_f32(a.v[i], vdupq_n_f32(low)), vdupq_n_f32(high));
  return a;
}
INLINE Lanes scaled_by(Lanes a, Lanes shifted) {
  for (int i = 0; i < 4; ++i) {
    const int32x4_t power = vshlq_n_s32(vreinterpretq_s32_f32(shifted.v[i]), 23);
    a.v[i] = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.v[i]), power));
  }
  return a;
}
#else
INLINE Lanes operator+(Lanes a, Lanes b) {
  for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
  return a;
}
INLINE Lanes between(Lanes a, float low, float high) {
  const Four least = {low, low, low, low}, most = {high, high, high, high};
  for (int i = 0; i < 4; ++i) {
    a.v[i] = a.v[i] > least ? a.v[i] : least;
    a.v[i] = a.v[i] < most ? a.v[i] : most;
  }
  return a;
}
typedef int32_t FourBits __attribute__((vector_size(16)));
INLINE Lanes scaled_by(Lanes a, Lanes shifted) {
  for (int i = 0; i < 4; ++i) {
    FourBits value, power;
    std::memcpy(&value, &a.v[i], 16), std::memcpy(&power, &shifted.v[i], 16);
    value += power << 23;
    std::memcpy(&a.v[i], &value, 16);
  }
  return a;
}
#endif

// 2^x within 2e-7; at most 2^127, and 2^-125, which is nothing beside 1, below that.
INLINE Lanes power_of_two(Lanes x) {
  x = between(x, -125.f, 127.f);
  const Lanes shifted = x + all(12582912.f), n = shifted + all(-12582912.f), f = fma(n, all(-1.f), x);
  Lanes p = all(1.535336188319500e-4f);  // (2^f - 1) / f, |f| <= 1/2 (Cephes)
  p = fma(p, f, all(1.339887440266574e-3f));
  p = fma(p, f, all(9.618437357674640e-3f));
  p = fma(p, f, all(5.550332471162809e-2f));
  p = fma(p, f, all(2.402264791363012e-1f));
  p = fma(p, f, all(6.931472028550421e-1f));
  return scaled_by(fma(p, f, all(1.f)), shifted);
}

// x [rows, columns] -> to [columns, rows], rows `stride` and `to_stride` apart.
INLINE void transpose(const float *x, int64_t stride, float *to, int64_t to_stride, int64_t rows, int64_t columns) {
  int64_t i = 0;
#if defined(__SSE2__)
  for (; i + 4 <= rows; i += 4) {
    int64_t j = 0;
    for (; j + 4 <= columns; j += 4) {
      const float *from = x + i * stride + j;
      __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride), c = _mm_loadu_ps(from + 2 * stride),
             d = _mm_loadu_ps(from + 3 * stride);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      float *there = to + j * to_stride + i;
      _mm_storeu_ps(there, a), _mm_storeu_ps(there + to_stride, b), _mm_storeu_ps(there + 2 * to_stride, c),
          _mm_storeu_ps(there + 3 * to_stride, d);
    }
    for (; j < columns; ++j)
      for (int64_t r = i; r < i + 4; ++r) to[j * to_stride + r] = x[r * stride + j];
  }
#elif defined(FLUVIAL_NEON)
  for (; i + 4 <= rows; i += 4) {
    int64_t j = 0;
    for (; j + 4 <= columns; j += 4) {
      float32x4_t four[4];
      for (int r = 0; r < 4; ++r) four[r] = vld1q_f32(x + (i + r) * stride + j);
      transpose(four);
      for (int r = 0; r < 4; ++r) vst1q_f32(to + (j + r) * to_stride + i, four[r]);
    }
    for (; j < columns; ++j)
      for (int64_t r = i; r < i + 4; ++r) to[j * to_stride + r] = x[r * stride + j];
  }
#endif
  for (; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * to_stride + i] = x[i * stride + j];
}

}  // namespace
