// Activations as whole numbers, as in rounded.h, for the products of many rows where the CPU multiplies bytes: each
// number as its signed bytes, those of four rows side by side.
#pragma once

#include "rounded.h"

namespace {

constexpr int64_t TILE = 4;      // rows of x whose sums stay in registers
constexpr int QUADS = PAIR / 4;  // groups of four columns, whose bytes stand together

// 32 columns of four rows of x.
template <int SLOTS, int BYTES>
struct Block {
  static constexpr bool WIDE = BYTES == 3;
  alignas(64) int32_t words[BYTES][QUADS][TILE];  // of each four columns; the lowest bytes first
  float unit[TILE], sum[TILE];
  // What the codes that stand for 0 add, negative: in all; for WIDE int8 to the lowest bytes and to the others.
  int32_t start[2][TILE];

  template <typename T>
  void fill(const T *x, int64_t stride, int64_t rows) {
    __m512i at[2][TILE];
    for (int m = 0; m < TILE; ++m) {
      if (m >= rows) {
        at[0][m] = at[1][m] = _mm512_setzero_si512();
        unit[m] = sum[m] = 0.f, start[0][m] = start[1][m] = 0;
        continue;
      }
      const Lanes a = load(x + m * stride), b = load(x + m * stride + 16);
      const int32_t bits = _mm512_reduce_max_epi32(
          _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(a.v)), _mm512_castps_si512(_mm512_abs_ps(b.v))));
      float largest;
      std::memcpy(&largest, &bits, 4);
      const Step step = step_of<SLOTS, BYTES>(largest, bits < 0x7f800000);
      at[0][m] = _mm512_cvtps_epi32((a * all(step.by)).v), at[1][m] = _mm512_cvtps_epi32((b * all(step.by)).v);
      const int32_t total = _mm512_reduce_add_epi32(_mm512_add_epi32(at[0][m], at[1][m]));
      unit[m] = step.unit, sum[m] = static_cast<float>(total) * step.unit;
      start[0][m] = -(SLOTS == 4 ? 8 : 128) * total, start[1][m] = 0;
      if (SLOTS == 2 && WIDE) {
        const int32_t above = _mm512_reduce_add_epi32(_mm512_add_epi32(without_low(at[0][m]), without_low(at[1][m])));
        start[0][m] = -128 * (total - 256 * above), start[1][m] = -128 * above;
      }
    }
#pragma GCC unroll 3
    for (int byte = 0; byte < BYTES; ++byte)
      for (int half = 0; half < 2; ++half) {
        __m512i now[TILE];
#pragma GCC unroll 4
        for (int m = 0; m < TILE; ++m) {
          const __m512i above = without_low(at[half][m]);
          now[m] = byte + 1 < BYTES ? _mm512_sub_epi32(at[half][m], _mm512_slli_epi32(above, 8)) : at[half][m];
          at[half][m] = above;
        }
        _mm512_store_si512(words[byte][4 * half], _mm512_packs_epi16(_mm512_packs_epi32(now[0], now[1]),
                                                                     _mm512_packs_epi32(now[2], now[3])));
      }
  }

 private:
  static __m512i without_low(__m512i a) { return high_part(Ints{a}).v; }
};

}  // namespace
