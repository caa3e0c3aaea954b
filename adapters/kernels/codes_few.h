// Few rows of x: every vector of codes is read once, from where it is stored, for a tile of rows of x.
#pragma once

#include "codes.h"

namespace {

template <int R, int M, bool SHIFT, int SLOTS, bool WIDE>
void few_tile(const Grouped &A, int64_t row, const Rounded<SLOTS, WIDE> *x, int64_t stride, const Result &y, int64_t first) {
  constexpr int64_t STEP = Rounded<SLOTS, WIDE>::COLUMNS;
  const int64_t row_bytes = A.K * 64 / STEP, ahead = ahead_of(R * row_bytes);
  Lanes sums[R][M];
#pragma GCC unroll 8
  for (int i = 0; i < R * M; ++i) sums[i / M][i % M] = zero();
  Spread scale[R], shift[SHIFT ? R : 1];
  for (int64_t from = 0; from < A.K; from += CHUNK) {
    const int64_t columns = std::min(CHUNK, A.K - from);
    for (int r = 0; r < R; ++r) {
      const int64_t at = ((row + r) * A.K + from) / A.group;
      scale[r].read(A.scale, at, columns, A.group);
      if (SHIFT) {
        shift[r].read(A.offset, at, columns, A.group);
        for (int64_t i = 0; i < CHUNK / PAIR; ++i)
          shift[r].values[i] = shift_of(scale[r].values[i], shift[r].values[i]);
      }
    }
    const uint8_t *q = A.q + (row * A.K + from) * 64 / STEP;
    const auto step = [&](int64_t c, const uint8_t *at, int64_t apart) __attribute__((always_inline)) {
      Words codes[R][SLOTS], low_codes[R][SLOTS / 2];
      Lanes by[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        codes_of<SLOTS>(words(at + r * apart), codes[r]);
        if (WIDE) low_codes_of<SLOTS>(words(at + r * apart), low_codes[r]);
        by[r] = by_lane<SLOTS>(scale[r].values + c / PAIR);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Rounded<SLOTS, WIDE> &now = x[m * stride];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          Ints dot = WIDE || SLOTS == 2 ? same(0) : load(now.start), low = load(now.start);
#pragma GCC unroll 4
          for (int s = 0; s < SLOTS; ++s) dot = add_products(dot, codes[r][s], words(now.words[s]));
#pragma GCC unroll 2
          for (int s = 0; WIDE && s < SLOTS / 2; ++s) low = add_byte_products(low, low_codes[r][s], words(now.low[s]));
          if (WIDE) dot = above(dot, low);
          sums[r][m] = fma(to_float(dot), by[r] * load(now.unit), sums[r][m]);
          if (SHIFT)
            sums[r][m] = fma(by_lane<SLOTS>(shift[r].values + c / PAIR), load(now.sum), sums[r][m]);
        }
      }
      ++x;
    };
    int64_t c = 0;
    for (; c + STEP <= columns; c += STEP) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) prefetch(q + r * row_bytes + c * 64 / STEP + ahead);
      step(c, q + c * 64 / STEP, row_bytes);
    }
    if (c < columns) {  // where x is 0, any code will do
      uint8_t rest[R][64] = {};
      for (int r = 0; r < R; ++r)
        std::memcpy(rest[r], q + r * row_bytes + c * 64 / STEP, static_cast<size_t>((columns - c) * 64 / STEP));
      step(c, rest[0], 64);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) Result::set(y, first + m, row + r, sum(sums[r][m]));
}

#if defined(__AVX512F__)
constexpr int MOST_CODES = 8;  // rows of x in flight
constexpr int few_rows(int m) { return m <= 2 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int MOST_CODES = 4;
constexpr int few_rows(int m) { return m == 1 ? 2 : 1; }
#else
constexpr int MOST_CODES = 2;
constexpr int few_rows(int) { return 1; }
#endif

template <bool SHIFT, int SLOTS, bool WIDE>
void few(const Grouped &A, int64_t begin, int64_t end, const Rounded<SLOTS, WIDE> *x, int64_t stride, const Result &y,
         int64_t M) {
  tiles<MOST_CODES>(M, [&](auto size, int64_t m) {
    constexpr int R = few_rows(size);
    const Rounded<SLOTS, WIDE> *from = x + m * stride;
    int64_t row = begin;
    for (; row + R <= end; row += R) few_tile<R, size, SHIFT>(A, row, from, stride, y, m);
    for (; row < end; ++row) few_tile<1, size, SHIFT>(A, row, from, stride, y, m);
  });
}

}  // namespace
