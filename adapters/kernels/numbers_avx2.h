// Activations as whole numbers (units.h) where vectors have 256 bits and bytes are multiplied in pairs (AVX2).
//
// For int4 the numbers are signed bytes: sums over 32 columns of a code, 0..15, times a byte fit in 16 bits. Codes of int8
// would not, so they are multiplied as words of 16 bits, and the numbers are one word, or two of three bytes.
#pragma once

#include <immintrin.h>

#include "codes.h"

namespace {

INLINE __m256i vector_at(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
INLINE __m128i half_at(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }

// How 32 columns of x are kept. SLOTS 4: for int4, 2: for int8.
template <int SLOTS, int BYTES>
struct Kept {
  static constexpr int PLANES = SLOTS == 4 ? BYTES : (BYTES + 1) / 2;  // of bytes or words, the lowest first
  static constexpr int WORDS = SLOTS == 4 ? PAIR / 4 : PAIR / 2;      // of 32 bits in a plane
};

// 32 columns of a row of x.
template <int SLOTS, int BYTES>
struct Numbers : Kept<SLOTS, BYTES> {
  using Kept<SLOTS, BYTES>::PLANES;
  __m256i planes[PLANES][4 / SLOTS];  // in the order of the columns
  float unit, sum;                    // sum: of the 32 activations
  int32_t zero;                       // what the codes that stand for 0 add to their products with int4, negative

  inline __attribute__((always_inline)) Numbers(const float *x) {
    const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 in[4];
    __m256i sizes = _mm256_setzero_si256();  // as whole numbers they compare as the floats do, and NaN is the largest
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      in[i] = _mm256_loadu_ps(x + 8 * i);
      sizes = _mm256_max_epi32(sizes, _mm256_castps_si256(_mm256_and_ps(in[i], positive)));
    }
    const int32_t bits = folded(sizes, [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
    float largest;
    std::memcpy(&largest, &bits, 4);
    const Step step = step_of<SLOTS, BYTES>(largest, bits < 0x7f800000);
    __m256i at[4], total = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      at[i] = _mm256_cvtps_epi32(_mm256_mul_ps(in[i], _mm256_set1_ps(step.by)));
      total = _mm256_add_epi32(total, at[i]);
    }
    const int32_t all = folded(total, [](__m128i a, __m128i b) { return _mm_add_epi32(a, b); });
    unit = step.unit, sum = static_cast<float>(all) * unit, zero = -8 * all;
#pragma GCC unroll 3
    for (int plane = 0; plane < PLANES; ++plane) {
      __m256i now[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i above = _mm256_srai_epi32(_mm256_add_epi32(at[i], _mm256_set1_epi32(128)), 8);
        now[i] = plane + 1 < PLANES ? _mm256_sub_epi32(at[i], _mm256_slli_epi32(above, 8)) : at[i];
        at[i] = above;
      }
      __m256i words[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) words[i] = _mm256_packs_epi32(now[2 * i], now[2 * i + 1]);
      if constexpr (SLOTS == 4) {
        planes[plane][0] = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]),
                                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      } else {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) planes[plane][i] = _mm256_permute4x64_epi64(words[i], 0xd8);
      }
    }
  }

 private:
  template <typename F>
  INLINE int32_t folded(__m256i a, F both) {  // of the eight words of 32 bits
    __m128i four = both(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    four = both(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(both(four, _mm_shuffle_epi32(four, 0xb1)));
  }
};

// What the words of eight rows of W, of 32 columns, are multiplied with, from their sums with the planes of x.
template <int SLOTS, int BYTES>
INLINE __m256 dot_of(const __m256i (&sums)[SLOTS == 4 ? 1 : Kept<SLOTS, BYTES>::PLANES], int32_t zero) {
  if constexpr (SLOTS == 4) return _mm256_cvtepi32_ps(_mm256_add_epi32(sums[0], _mm256_set1_epi32(zero)));
  const __m256 low = _mm256_cvtepi32_ps(sums[0]);
  if constexpr (SLOTS == 2 && BYTES == 3)
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[1]), _mm256_set1_ps(256.f), low);
  return low;
}

// Eight rows' scales from the value `first` on, of `all`, in fp32: to[group * STRIDE + row].
template <int STRIDE>
void turn_scales(const Scales &from, int64_t first, int64_t row_groups, int64_t groups, int64_t all, float *to) {
  for (int64_t g = 0; g < groups; g += 8) {
    const int64_t count = std::min<int64_t>(8, groups - g);
    __m128i a[8], b[8];
    const uint16_t *rows = from.values + first + g;
    int64_t step = row_groups;
    alignas(16) uint16_t some[8][8];
    if (first + 7 * row_groups + g + 8 > all) {  // what lies behind the last row is nobody's
      for (int r = 0; r < 8; ++r) std::memcpy(some[r], rows + r * row_groups, count * sizeof *rows);
      rows = some[0], step = 8;
    }
    for (int r = 0; r < 8; ++r) a[r] = eight_halves(rows + r * step);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2)
      b[i] = _mm_unpacklo_epi16(a[i], a[i + 1]), b[i + 1] = _mm_unpackhi_epi16(a[i], a[i + 1]);
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        a[i + 2 * j] = _mm_unpacklo_epi32(b[i + j], b[i + j + 2]);
        a[i + 2 * j + 1] = _mm_unpackhi_epi32(b[i + j], b[i + j + 2]);
      }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      b[2 * i] = _mm_unpacklo_epi64(a[i], a[i + 4]), b[2 * i + 1] = _mm_unpackhi_epi64(a[i], a[i + 4]);
    for (int64_t i = 0; i < count; ++i)
      _mm256_storeu_ps(to + (g + i) * STRIDE, from.bf16 ? shifted_up(b[i]) : _mm256_cvtph_ps(b[i]));
  }
}

}  // namespace
