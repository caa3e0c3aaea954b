// Activations as whole numbers, as in rounded.h, for the products of many rows where the CPU multiplies bytes: each
// number as two signed bytes, those of four rows side by side.
#pragma once

#include "rounded.h"

namespace {

constexpr int64_t TILE = 4;      // rows of x whose sums stay in registers
constexpr int QUADS = PAIR / 4;  // groups of four columns, whose bytes stand together

// 32 columns of four rows of x.
template <int SLOTS>
struct Block {
  alignas(64) int32_t words[2][QUADS][TILE];  // of each four columns, the lower bytes first
  float unit[TILE], sum[TILE];
  int32_t start[TILE];  // what the codes that stand for 0 add, negative

  template <typename T>
  void fill(const T *x, int64_t stride, int64_t rows) {
    __m512i at[2][TILE];
    for (int m = 0; m < TILE; ++m) {
      if (m >= rows) {
        at[0][m] = at[1][m] = _mm512_setzero_si512();
        unit[m] = sum[m] = 0.f, start[m] = 0;
        continue;
      }
      const Lanes a = load(x + m * stride), b = load(x + m * stride + 16);
      const int32_t bits = _mm512_reduce_max_epi32(
          _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(a.v)), _mm512_castps_si512(_mm512_abs_ps(b.v))));
      float largest;
      std::memcpy(&largest, &bits, 4);
      const Step step = step_of(largest, bits < 0x7f800000);
      at[0][m] = _mm512_cvtps_epi32((a * all(step.by)).v), at[1][m] = _mm512_cvtps_epi32((b * all(step.by)).v);
      const int32_t total = _mm512_reduce_add_epi32(_mm512_add_epi32(at[0][m], at[1][m]));
      unit[m] = step.unit, sum[m] = static_cast<float>(total) * step.unit;
      start[m] = -(SLOTS == 4 ? 8 : 128) * total;
    }
    for (int half = 0; half < 2; ++half) {
      __m512i low[TILE], high[TILE];
#pragma GCC unroll 4
      for (int m = 0; m < TILE; ++m) {
        high[m] = high_part(Ints{at[half][m]}).v;
        low[m] = _mm512_sub_epi32(at[half][m], _mm512_slli_epi32(high[m], 8));
      }
      _mm512_store_si512(words[0][4 * half], narrowed(low));
      _mm512_store_si512(words[1][4 * half], narrowed(high));
    }
  }

 private:
  static __m512i narrowed(const __m512i (&a)[TILE]) {  // to bytes
    return _mm512_packs_epi16(_mm512_packs_epi32(a[0], a[1]), _mm512_packs_epi32(a[2], a[3]));
  }
};

}  // namespace
