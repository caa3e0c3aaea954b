// Products of int4 and int8 weights by whole numbers (AVX-512 VNNI), as exact as fp32 and with half the instructions.
//
// 32 neighbouring activations become integers below 2^23 (int8: 2^22) times a common unit, which keeps what fp32 would
// keep of the largest of them. An integer is three signed bytes; a weight's code times each byte is summed by the
// processor without rounding, so only adding the groups of a row rounds.
#pragma once

#include "lanes.h"

#if defined(__AVX512VNNI__)

namespace {

// Columns of one 64-byte vector of codes: 128 of int4 (HALVES 2: low nibbles, high nibbles), 64 of int8 (HALVES 1).
template <int HALVES>
struct Integers {
  static constexpr int64_t COLUMNS = 64 * HALVES;
  static constexpr float LARGEST = HALVES == 2 ? 8.3e6f : 4.1e6f;  // three bytes; and no sum of eight (four) overflows
  static constexpr int32_t ZERO = HALVES == 2 ? 8 : 128;           // the code that stands for 0
  alignas(64) int8_t bytes[HALVES][3][64];                         // least significant first
  alignas(64) int32_t start[16];                                   // -ZERO times the sum of a lane
  alignas(64) float unit[16], sum[16];                             // of a lane; sum of its activations

  // sum over a lane's columns of codes (0..255) times activations
  INLINE __m512i dot(const Integers &x, const __m512i (&codes)[HALVES], __m512i start) {
    __m512i t = _mm512_setzero_si512();
#pragma GCC unroll 3
    for (int byte = 2; byte >= 0; --byte) {
      if (byte < 2) t = _mm512_slli_epi32(t, 8);
      if (byte == 0) t = _mm512_add_epi32(t, start);
#pragma GCC unroll 2
      for (int half = 0; half < HALVES; ++half)
        t = _mm512_dpbusd_epi32(t, codes[half], _mm512_load_si512(x.bytes[half][byte]));
    }
    return t;
  }

  void fill(const float *x, int64_t columns) {
    alignas(64) float padded[COLUMNS];
    if (columns < COLUMNS) {
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, x, sizeof(float) * columns);
      x = padded;
    }
    constexpr int lanes = 8 / HALVES;  // that share 32 columns
    for (int block = 0; block < 2 * HALVES; ++block) {
      const __m512 v[2] = {_mm512_loadu_ps(x + 32 * block), _mm512_loadu_ps(x + 32 * block + 16)};
      const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v[0]), _mm512_abs_ps(v[1])));
      const bool finite = _mm512_reduce_add_ps(_mm512_mul_ps(_mm512_add_ps(v[0], v[1]), _mm512_setzero_ps())) == 0.f;
      const float step = largest / LARGEST > 1.2e-38f ? largest / LARGEST : 1.2e-38f, by = 1.f / step;
      for (int i = 0; i < lanes; ++i) unit[block * lanes + i] = finite ? step : __builtin_nanf("");
      for (int i = 0; i < 2; ++i) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], _mm512_set1_ps(by)));
        for (int byte = 0; byte < 3; ++byte) {
          int8_t *to = HALVES == 2 ? bytes[i % HALVES][byte] + 16 * block : bytes[0][byte] + 32 * block + 16 * i;
          _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(whole));
          whole = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
        }
      }
    }
    __m512i ones[HALVES];
    for (int half = 0; half < HALVES; ++half) ones[half] = _mm512_set1_epi8(1);
    const __m512i total = dot(*this, ones, _mm512_setzero_si512());
    _mm512_store_si512(start, _mm512_mullo_epi32(total, _mm512_set1_epi32(-ZERO)));
    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_load_ps(unit)));
  }
};

// A row's scale for each lane of a vector: the scales of 32 columns each, from `scale` on.
template <int HALVES>
INLINE __m512 by_lane(const float *scale) {
  if (HALVES == 2) {
    const __m512i fours = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(scale)), fours);
  }
  const __m512 both = _mm512_castpd_ps(_mm512_set1_pd(*reinterpret_cast<const double *>(scale)));
  return _mm512_permutevar_ps(both, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
}

template <int HALVES>
INLINE void codes_of(const uint8_t *q, __mmask64 mask, __m512i (&codes)[HALVES]) {
  const __m512i bytes = _mm512_maskz_loadu_epi8(mask, q);
  if constexpr (HALVES == 2) {
    const __m512i low = _mm512_set1_epi8(15);
    codes[0] = _mm512_and_si512(bytes, low);
    codes[1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
  } else {
    codes[0] = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
  }
}

}  // namespace

#endif
