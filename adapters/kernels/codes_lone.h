// One row of x where the CPU multiplies bytes (VNNI). W is read straight on, row by row, which is how memory gives most:
// sixteen rows at 16 bytes each in turn held a decode step at two thirds of it. The sums of groups of 32 columns, not the
// codes, are turned round afterwards, so that sixteen rows of W stand in the lanes as in the products of more rows of
// x, and everything is rounded in the same order.
#pragma once

#include "codes.h"
#include "rounded.h"
#include "turned.h"

namespace {

// 512 columns of x, their bytes in the order in which a row of W has its codes.
template <int SLOTS, int BYTES>
struct Stretch {
  alignas(64) int8_t digits[BYTES][8][64];
  float unit[STRETCH], sum[STRETCH];
  int32_t zero[2][STRETCH];  // what the codes that stand for 0 add, negative: to all sums, or to the low and the others

  void fill(const Rounded<SLOTS, BYTES> *x, int64_t pairs) {
    if (pairs < STRETCH) std::memset(this, 0, sizeof *this);
    for (int64_t k = 0; k < pairs; ++k) {
      for (int byte = 0; byte < BYTES; ++byte)
        for (int half = 0; half < 2; ++half) {
          int8_t *to = SLOTS == 4 ? digits[byte][k / 4 * 2 + half] + k % 4 * 16
                                  : digits[byte][k / 2] + k % 2 * 32 + 16 * half;
          std::memcpy(to, x[k].digits[byte] + 16 * half, 16);
        }
      unit[k] = x[k].unit, sum[k] = x[k].sum;
      zero[0][k] = -x[k].ZERO * (BYTES < 3 ? x[k].high : SLOTS == 2 ? x[k].low : 256 * x[k].high + x[k].low);
      zero[1][k] = -x[k].ZERO * x[k].high;
    }
  }
};

// The sums of the groups of a stretch of a row of W, with those of its high bytes apart if they do not fit.
template <int SLOTS, int BYTES, bool APART, int SIZE>
INLINE void add_stretch(const uint8_t *codes, const __mmask16 (&within)[SIZE], const Stretch<SLOTS, BYTES> &x,
                        int32_t *to, int32_t *above_them) {
  Ints parts[SIZE], high_parts[SIZE];
#pragma GCC unroll 8
  for (int i = 0; i < SIZE; ++i) {
    const Words now{_mm512_maskz_loadu_epi32(within[i], codes + 64 * i)};
    const Words low = SLOTS == 4 ? low_nibbles(now) : above_128(now), high = high_nibbles(now);
    Ints part = same(0);
#pragma GCC unroll 3
    for (int byte = BYTES - 1; byte >= 0; --byte) {  // the highest first
      if (APART && byte == 0)
        high_parts[i] = part, part = same(0);
      else if (byte < BYTES - 1)
        part = above(part, same(0));
      part = add_byte_products(part, low, words(x.digits[byte][SLOTS == 4 ? 2 * i : i]));
      if (SLOTS == 4) part = add_byte_products(part, high, words(x.digits[byte][2 * i + 1]));
    }
    parts[i] = part;
  }
  _mm512_store_si512(to, add_groups<SLOTS>(parts));
  if (APART) _mm512_store_si512(above_them, add_groups<SLOTS>(high_parts));
}

// Sixteen rows of W from `row` on, of which the last `fresh` are wanted, times x.
template <bool SHIFT, int SLOTS, int BYTES>
void lone(const Grouped &A, int64_t row, int64_t fresh, const Stretch<SLOTS, BYTES> *x, const Result &y) {
  constexpr bool APART = SLOTS == 2 && BYTES == 3;  // 32 columns would not fit in 32 bits
  constexpr int SIZE = 16 / SLOTS, PER = SLOTS == 4 ? 4 : 2;  // vectors of codes in a stretch; groups in one
  constexpr int64_t COLUMNS = STRETCH * PAIR, MOST = 8;  // of a stretch; stretches that are summed row by row
  // How far ahead W is fetched. Of one byte the products are soon done: a quarter of the lines is fetched afterwards.
  constexpr int64_t AHEAD = (BYTES == 1 ? 16 : 6) << 10;
  constexpr int EARLY = BYTES == 1 ? 3 : 4, LATE = BYTES == 1 ? 4 / SLOTS : 0;  // quarters; lines a group of 32 columns
  const int64_t row_bytes = A.K * 2 / SLOTS, row_groups = A.K / A.group;
  alignas(64) int32_t space[MOST][BAND][16], high_space[APART ? MOST : 1][BAND][16];
  Lanes sums = zero();
  for (int64_t from = 0; from < A.K; from += MOST * COLUMNS, x += MOST) {
    const int64_t columns = std::min(MOST * COLUMNS, A.K - from), whole = columns / COLUMNS;
    const int64_t left = columns % COLUMNS / PAIR;  // groups of the last stretch
    __mmask16 all_of[SIZE], some[SIZE];
#pragma GCC unroll 8
    for (int i = 0; i < SIZE; ++i) {
      all_of[i] = 0xffff;
      some[i] = left > PER * i ? of_sixteen((left - PER * i) * 16 / PER) : __mmask16(0);
    }
    const uint8_t *codes = A.q + row * row_bytes + from * 2 / SLOTS;
    const uint8_t *ahead = codes + AHEAD;
    for (int r = 0; r < BAND; ++r, codes += row_bytes) {
      for (int64_t b = 0; b < columns * 2 / SLOTS * EARLY / 4; b += 64, ahead += 64) prefetch(ahead);
      for (int64_t g = 0; g < columns / A.group; g += 32)
        prefetch(A.scale.values + (row + BAND + r) * row_groups + from / A.group + g);
      for (int64_t s = 0; s < whole; ++s)
        add_stretch<SLOTS, BYTES, APART>(codes + s * 64 * SIZE, all_of, x[s], space[s][r],
                                         high_space[APART ? s : 0][r]);
      if (left)
        add_stretch<SLOTS, BYTES, APART>(codes + whole * 64 * SIZE, some, x[whole], space[whole][r],
                                         high_space[APART ? whole : 0][r]);
    }
    for (int64_t s = 0; s * COLUMNS < columns; ++s) {
      const Spread spread(std::min(COLUMNS, columns - s * COLUMNS), A.group);
      int64_t first = row * row_groups + (from + s * COLUMNS) / A.group;
      __m512i dots[BAND], above_them[BAND], scales[BAND], shifts[BAND];
      for (int r = 0; r < BAND; ++r, first += row_groups) {
        dots[r] = _mm512_load_si512(space[s][r]);
        if (APART) above_them[r] = _mm512_load_si512(high_space[APART ? s : 0][r]);
        const Lanes by = Spread::read(spread, A.scale, first);
        scales[r] = _mm512_castps_si512(by.v);
        if (SHIFT) shifts[r] = _mm512_castps_si512(fma(all(8.f), by, Spread::read(spread, A.offset, first)).v);
      }
      transpose(dots), transpose(scales);
      if (APART) transpose(above_them);
      if (SHIFT) transpose(shifts);
#pragma GCC unroll 16
      for (int k = 0; k < STRETCH; ++k) {
        const int lane = lane_of<SLOTS>(k);
        for (int i = 0; i < LATE; ++i, ahead += 64) prefetch(ahead);
        Lanes dot = to_float({_mm512_add_epi32(dots[lane], same(x[s].zero[0][k]).v)});
        if (APART) dot = fma(to_float({_mm512_add_epi32(above_them[lane], same(x[s].zero[1][k]).v)}), all(256.f), dot);
        sums = fma(dot, Lanes{_mm512_castsi512_ps(scales[k])} * all(x[s].unit[k]), sums);
        if (SHIFT) sums = fma({_mm512_castsi512_ps(shifts[k])}, all(x[s].sum[k]), sums);
      }
    }
  }
  float values[BAND];
  store(values, sums);
  Result::set(y, 0, row + BAND - fresh, fresh, values + BAND - fresh);
}

template <int SLOTS, int BYTES>
void multiply_lone(const Grouped &A, const Rounded<SLOTS, BYTES> *x, const Result &y, int64_t threads) {
  static thread_local std::vector<Stretch<SLOTS, BYTES>> space;
  const int64_t groups = A.K / PAIR, count = (groups + STRETCH - 1) / STRETCH;
  if (static_cast<int64_t>(space.size()) < count) space.resize(count);
  Stretch<SLOTS, BYTES> *stretches = space.data();
  for (int64_t i = 0; i < count; ++i)
    stretches[i].fill(x + i * STRETCH, std::min<int64_t>(STRETCH, groups - i * STRETCH));
  each_band<BAND>(A.N, threads, [&](int64_t row, int64_t fresh) {
    if (SLOTS == 4 && A.offset.values)
      lone<SLOTS == 4>(A, row, fresh, stretches, y);
    else
      lone<false>(A, row, fresh, stretches, y);
  });
}

}  // namespace
