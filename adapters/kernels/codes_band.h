// The products of whole numbers with codes where sixteen rows of W stand in the lanes of vectors (turned.h): they are read
// once from memory and multiplied by all rows of x.
#pragma once

#include "codes.h"
#include "rounded.h"
#include "turned.h"
#if defined(__AVX512VNNI__)
#include "codes_panel.h"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int MEET = 8;  // rows of x that a vector of codes meets while it is in a register
#elif defined(FLUVIAL_NEON)
constexpr int MEET = 4;
#else
constexpr int MEET = 2;
#endif
constexpr int64_t AT_ONCE = 128;  // rows of x that stay in the cache meanwhile
#if defined(__AVX512VNNI__)
constexpr int64_t FEW = 16;  // rows of x; with more it pays to keep what was turned round
#endif

// The codes of 32 columns of sixteen rows as bytes, four columns a vector.
template <int SLOTS>
VECTORS void unpack(const uint8_t *rows, int64_t stride, Words (&codes)[FOURS]) {
  Words now[4];
  turn(rows, stride, now);
  if constexpr (SLOTS == 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) codes[i] = low_nibbles(now[i]), codes[i + 4] = high_nibbles(now[i]);
  } else {
    Words more[4];
    turn(rows + 16, stride, more);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) codes[i] = int8_codes(now[i]), codes[i + 4] = int8_codes(more[i]);
  }
}

// The scales of sixteen rows for some columns, in fp32: [group][row].
struct BandScales {
  static constexpr int64_t MOST = CHUNK / PAIR;
  alignas(64) float values[MOST * BAND];

  void read(const Scales &from, int64_t first, int64_t stride, int64_t groups) {
    alignas(64) float wide[BAND][MOST];
    for (int r = 0; r < BAND; ++r) Scales::widen(from, first + r * stride, groups, wide[r]);
    for (int64_t i = 0; i < groups; i += 4) {
      Words turned[4];
      turn(reinterpret_cast<const uint8_t *>(wide[0] + i), sizeof wide[0], turned);
      for (int k = 0; k < 4; ++k) store(values + (i + k) * BAND, turned[k]);
    }
  }
};

// Sixteen rows of W from `row` on, of which the last `fresh` are wanted, times M rows of x [pair][M]: y from the row
// `first` on.
template <int M, bool SHIFT, int SLOTS, int BYTES>
void band(const Grouped &A, int64_t row, int64_t fresh, const Rounded<SLOTS, BYTES> *x, const Result &y,
          int64_t first) {
  constexpr int64_t WIDTH = 2 * PAIR / SLOTS;  // bytes of the codes of 32 columns
  const int64_t row_bytes = A.K * 2 / SLOTS, row_groups = A.K / A.group;
  const int by_group = __builtin_ctzll(A.group / PAIR);
  const uint8_t *codes = A.q + row * row_bytes, *next = codes + BAND * row_bytes;
  Lanes sums[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sums[m] = zero();
  BandScales scale, shift;
  for (int64_t from = 0; from < A.K; from += CHUNK) {
    const int64_t pairs = std::min(CHUNK, A.K - from) / PAIR, groups = ((pairs - 1) >> by_group) + 1;
    const int64_t at = row * row_groups + from / A.group;
    scale.read(A.scale, at, row_groups, groups);
    if (SHIFT) {
      shift.read(A.offset, at, row_groups, groups);
      // code scale + offset = (code - 8) scale + (offset + 8 scale), which cancels less than the sum of the two
      for (int64_t i = 0; i < groups * BAND; ++i) shift.values[i] += 8.f * scale.values[i];
    }
    for (int64_t i = 0; i < pairs; ++i, codes += WIDTH, x += M) {
      Words now[FOURS];
      unpack<SLOTS>(codes, row_bytes, now);
#pragma GCC unroll 8
      for (int64_t k = 0; k < WIDTH / 4; ++k, next += 64) prefetch(next);
      const int64_t group = (i >> by_group) * BAND;
      const Lanes by = load(scale.values + group);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        sums[m] = fma(Rounded<SLOTS, BYTES>::dot(x[m], now), by * all(x[m].unit), sums[m]);
        if (SHIFT) sums[m] = fma(load(shift.values + group), all(x[m].sum), sums[m]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    float values[BAND];
    store(values, sums[m]);
    Result::set(y, first + m, row + BAND - fresh, fresh, values + BAND - fresh);
  }
}

// y = x W^T for M <= AT_ONCE rows of x; W has sixteen rows or more.
template <int SLOTS, int BYTES>
void multiply_rows(const Grouped &A, const float *x, const Result &y, int64_t M, int64_t threads) {
  static thread_local std::vector<Rounded<SLOTS, BYTES>> space;
  const int64_t pairs = A.K / PAIR;
  if (static_cast<int64_t>(space.size()) < M * pairs) space.resize(M * pairs);
  Rounded<SLOTS, BYTES> *rounded = space.data();
  share((pairs + 15) / 16, M * A.K < THREADED / 8 ? 1 : threads, [&](int64_t job) {
    const int64_t pair = 16 * job, count = std::min<int64_t>(16, pairs - pair);
    tiles<MEET>(M, [&](int64_t size, int64_t first) {
      for (int64_t m = 0; m < size; ++m)
        Rounded<SLOTS, BYTES>::fill(x + (first + m) * A.K + pair * PAIR, count,
                                    rounded + first * pairs + pair * size + m, size);
    });
  });
#if defined(__AVX512VNNI__)
  if (M == 1) return multiply_lone(A, rounded, y, threads);
#endif
  each_band<BAND>(A.N, threads, [&](int64_t row, int64_t fresh) {
    tiles<MEET>(M, [&](auto size, int64_t m) {
      if (SLOTS == 4 && A.offset.values)
        band<size, SLOTS == 4>(A, row, fresh, rounded + m * pairs, y, m);
      else
        band<size, false>(A, row, fresh, rounded + m * pairs, y, m);
    });
  });
}

}  // namespace
