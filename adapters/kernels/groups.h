// Sums within vectors of sixteen words of 32 bits, for sixteen groups of 32 columns at a time.
#pragma once

#include "words.h"

#if defined(__AVX512F__)

namespace {

constexpr int STRETCH = 16;  // groups of 32 columns

INLINE void transpose(__m512i (&a)[16]) {  // 16 x 16 words of 32 bits
  __m512i b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88), b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88), a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
  }
}

// Four sums of four words each, as words side by side.
INLINE __m512i add_fours(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}
// Of vectors of whose lanes eight (SLOTS 2) or, in two halves, four (SLOTS 4) belong to a group, in the order of the
// groups: the sum of each of the sixteen groups, of group k in lane `lane_of(k)`.
template <int SLOTS>
INLINE __m512i add_groups(const Ints (&a)[16 / SLOTS]) {
  const __m512i first = add_fours(a[0].v, a[1].v, a[2].v, a[3].v);
  if constexpr (SLOTS == 4) return first;
  else {
    const __m512i second = add_fours(a[4].v, a[5].v, a[6].v, a[7].v);
    return _mm512_add_epi32(_mm512_shuffle_i32x4(first, second, 0x88), _mm512_shuffle_i32x4(first, second, 0xdd));
  }
}
template <int SLOTS>
constexpr int lane_of(int k) {
  return SLOTS == 4 ? k % 4 * 4 + k / 4 : (k / 8 * 2 + k % 2) * 4 + k / 2 % 4;
}

}  // namespace

#endif
