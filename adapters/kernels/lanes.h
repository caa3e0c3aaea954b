// Sixteen floats as one value, on every instruction set: the same lanes, so sums are added in the same order everywhere.
// `stream` stores past the caches, to a 64-byte boundary: what is not read again soon then costs no read before its write.
#pragma once

#include <cstring>

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(FLUVIAL_NEON)
#include <arm_neon.h>
#endif

namespace {

INLINE float widened(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

INLINE uint16_t narrowed(float value) {  // to the nearest bf16, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

INLINE float from_half(uint16_t half) {  // finite fp16, subnormal too
  const uint32_t magnitude = half & 0x7fffu;
  const int32_t exponent = static_cast<int32_t>(magnitude >> 10), mantissa = static_cast<int32_t>(magnitude & 1023);
  const uint32_t bits = static_cast<uint32_t>((exponent ? exponent : 1) - 25 + 127) << 23;  // 2^(exponent - 25)
  float unit;
  std::memcpy(&unit, &bits, 4);
  const float value = static_cast<float>(exponent ? mantissa + 1024 : mantissa) * unit;
  return half & 0x8000u ? -value : value;
}

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};
INLINE Lanes zero() { return {_mm512_setzero_ps()}; }
INLINE Lanes all(float value) { return {_mm512_set1_ps(value)}; }
INLINE Lanes load(const float *p) { return {_mm512_loadu_ps(p)}; }
INLINE void store(float *p, Lanes a) { _mm512_storeu_ps(p, a.v); }
INLINE void stream(float *p, Lanes a) { _mm512_stream_ps(p, a.v); }
INLINE Lanes load(const uint16_t *p) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))), 16))};
}
INLINE Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INLINE float sum(Lanes a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 a, b;
};
INLINE Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE Lanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
INLINE Lanes load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float *p, Lanes a) { _mm256_storeu_ps(p, a.a), _mm256_storeu_ps(p + 8, a.b); }
INLINE void stream(float *p, Lanes a) { _mm256_stream_ps(p, a.a), _mm256_stream_ps(p + 8, a.b); }
INLINE __m128i eight_halves(const uint16_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
INLINE __m256 shifted_up(__m128i bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
}
INLINE Lanes load(const uint16_t *p) { return {shifted_up(eight_halves(p)), shifted_up(eight_halves(p + 8))}; }
INLINE Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
INLINE float sum(Lanes x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#elif defined(FLUVIAL_NEON)

struct Lanes {
  float32x4_t v[4];
};
INLINE Lanes all(float value) {
  const float32x4_t four = vdupq_n_f32(value);
  return {{four, four, four, four}};
}
INLINE Lanes zero() { return all(0.f); }
INLINE Lanes load(const float *p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
INLINE void store(float *p, Lanes a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
INLINE void stream(float *p, Lanes a) { store(p, a); }
INLINE Lanes load(const uint16_t *p) {
  const uint16x8_t none = vdupq_n_u16(0), a = vld1q_u16(p), b = vld1q_u16(p + 8);
  return {{vreinterpretq_f32_u16(vzip1q_u16(none, a)), vreinterpretq_f32_u16(vzip2q_u16(none, a)),
           vreinterpretq_f32_u16(vzip1q_u16(none, b)), vreinterpretq_f32_u16(vzip2q_u16(none, b))}};
}
INLINE Lanes operator*(Lanes a, Lanes b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vmulq_f32(a.v[i], b.v[i]);
  return a;
}
INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
INLINE float sum(Lanes a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}
INLINE void transpose(float32x4_t (&a)[4]) {
  const float32x4_t even[] = {vzip1q_f32(a[0], a[2]), vzip2q_f32(a[0], a[2])};
  const float32x4_t odd[] = {vzip1q_f32(a[1], a[3]), vzip2q_f32(a[1], a[3])};
  for (int i = 0; i < 2; ++i) a[2 * i] = vzip1q_f32(even[i], odd[i]), a[2 * i + 1] = vzip2q_f32(even[i], odd[i]);
}

#else

typedef float Four __attribute__((vector_size(16)));
struct Lanes {
  Four v[4];
};
INLINE Lanes all(float value) {
  const Four four = {value, value, value, value};
  return {{four, four, four, four}};
}
INLINE Lanes zero() { return all(0.f); }
INLINE Lanes load(const float *p) {
  Lanes r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
INLINE void store(float *p, Lanes a) { std::memcpy(p, &a, sizeof a); }
INLINE void stream(float *p, Lanes a) {
#if defined(__SSE2__)
  for (int i = 0; i < 4; ++i) _mm_stream_ps(p + 4 * i, a.v[i]);
#else
  store(p, a);
#endif
}
template <typename F>
INLINE Lanes each(F value) {  // of lanes 0..15
  float lanes[16];
#pragma omp simd
  for (int i = 0; i < 16; ++i) lanes[i] = value(i);
  return load(lanes);
}
INLINE Lanes load(const uint16_t *p) {
  uint32_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<uint32_t>(p[i]) << 16;
  Lanes r;
  std::memcpy(&r, lanes, sizeof r);
  return r;
}
INLINE Lanes operator*(Lanes a, Lanes b) {
  for (int i = 0; i < 4; ++i) a.v[i] *= b.v[i];
  return a;
}
INLINE Lanes fma(Lanes a, Lanes b, Lanes c) {
  for (int i = 0; i < 4; ++i) c.v[i] += a.v[i] * b.v[i];
  return c;
}
INLINE float sum(Lanes a) {
  const Four four = (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

#endif

}  // namespace
