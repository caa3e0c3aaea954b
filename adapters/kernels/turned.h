// Sixteen rows of a matrix turned round, so that they stand in the lanes of a vector and no sum crosses lanes.
#pragma once

#include "words.h"

namespace {

constexpr int BAND = 16;  // rows

// Sixteen bytes of each of sixteen rows, `stride` bytes apart, as four vectors of four bytes a row.
INLINE void turn(const uint8_t *rows, int64_t stride, Words (&to)[4]) {
#if defined(__AVX512F__)
  const auto of_row = [=](int r) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows + r * stride));
  };
  __m512i v[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(of_row(r)), of_row(r + 4), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(of_row(r + 8)), of_row(r + 12), 1);
    v[r] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  to[0] = {_mm512_unpacklo_epi64(a, c)}, to[1] = {_mm512_unpackhi_epi64(a, c)};
  to[2] = {_mm512_unpacklo_epi64(b, d)}, to[3] = {_mm512_unpackhi_epi64(b, d)};
#elif defined(FLUVIAL_NEON)
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    float32x4_t four[4];
    for (int r = 0; r < 4; ++r) four[r] = vreinterpretq_f32_u8(vld1q_u8(rows + (4 * part + r) * stride));
    transpose(four);
    for (int i = 0; i < 4; ++i) to[i].v[part] = vreinterpretq_u8_f32(four[i]);
  }
#else
  uint32_t turned[4][BAND];
  for (int r = 0; r < BAND; ++r)
    for (int i = 0; i < 4; ++i) std::memcpy(&turned[i][r], rows + r * stride + 4 * i, 4);
  for (int i = 0; i < 4; ++i) to[i] = words(turned[i]);
#endif
}

}  // namespace
