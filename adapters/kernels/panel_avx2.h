// Several rows of x on AVX2. A panel of sixteen rows of W is turned round into the first cache, its rows into the lanes of
// vectors, and met by all rows of x, four at a time. Sums over 32 columns are exact (numbers_avx2.h).
#pragma once

#include "lone_avx2.h"

namespace {

constexpr int TILE = 4;           // rows of x whose sums stay in registers
constexpr int64_t AT_ONCE = 256;  // rows of x that are rounded at a time
constexpr int64_t BAND = 16;      // rows of W

// 32 columns of S rows of x: their words of 32 bits side by side.
template <int SLOTS, int BYTES, int S>
struct Block : Kept<SLOTS, BYTES> {
  using Kept<SLOTS, BYTES>::PLANES;
  using Kept<SLOTS, BYTES>::WORDS;
  int32_t words[PLANES][WORDS][S];
  float unit[S], sum[S];
  int32_t zero[S];

  void fill(const float *x, int64_t stride) {
    __m256i at[S][PLANES][4 / SLOTS];
#pragma GCC unroll 4
    for (int m = 0; m < S; ++m) {
      const Numbers<SLOTS, BYTES> now(x + m * stride);
      unit[m] = now.unit, sum[m] = now.sum, zero[m] = now.zero;
      std::memcpy(at[m], now.planes, sizeof at[m]);
    }
    for (int plane = 0; plane < PLANES; ++plane)
      for (int i = 0; i < 4 / SLOTS; ++i) {
        int32_t(*to)[S] = words[plane] + 8 * i;
        if constexpr (SLOTS == 2)
#pragma GCC unroll 4
          for (int m = 0; m < S; ++m) at[m][plane][i] = _mm256_shuffle_epi8(at[m][plane][i], in_twos());
        if constexpr (S == 4) {
          transpose(at[0][plane][i], at[1][plane][i], at[2][plane][i], at[3][plane][i], to);
        } else {
#pragma GCC unroll 4
          for (int m = 0; m < S; ++m) {
            alignas(32) int32_t row[8];
            _mm256_store_si256(reinterpret_cast<__m256i *>(row), at[m][plane][i]);
            for (int w = 0; w < 8; ++w) to[w][m] = row[w];
          }
        }
      }
  }

 private:
  // Columns 0 2, 1 3, 4 6, 5 7: two of a word are multiplied together, as Panel::turn leaves the codes.
  INLINE __m256i in_twos() {
    return _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  }
  INLINE void transpose(__m256i a, __m256i b, __m256i c, __m256i d, int32_t (*to)[S]) {
    const __m256i e = _mm256_unpacklo_epi32(a, b), f = _mm256_unpackhi_epi32(a, b);
    const __m256i g = _mm256_unpacklo_epi32(c, d), h = _mm256_unpackhi_epi32(c, d);
    const __m256i of[] = {_mm256_unpacklo_epi64(e, g), _mm256_unpackhi_epi64(e, g), _mm256_unpacklo_epi64(f, h),
                          _mm256_unpackhi_epi64(f, h)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm_storeu_si128(reinterpret_cast<__m128i *>(to[i]), _mm256_castsi256_si128(of[i]));
      _mm_storeu_si128(reinterpret_cast<__m128i *>(to[i + 4]), _mm256_extracti128_si256(of[i], 1));
    }
  }
};

// Sixteen rows of W, COLUMNS columns.
template <int SLOTS, int BYTES>
struct Panel : Kept<SLOTS, BYTES> {
  using Kept<SLOTS, BYTES>::PLANES;
  using Kept<SLOTS, BYTES>::WORDS;
  static constexpr int64_t COLUMNS = 128 * SLOTS;  // 8 KB
  __m256i codes[COLUMNS / PAIR][WORDS][2];         // bytes or words, those of eight rows side by side
  alignas(32) float scale[COLUMNS / PAIR][BAND], shift[COLUMNS / PAIR][BAND];

  // Of the rows from A's row `row` on, `columns` from the column `from`; `next` is fetched meanwhile.
  template <bool SHIFT>
  void turn(const Grouped &A, int64_t row, int64_t from, int64_t columns, const uint8_t *&next) {
    const int64_t row_bytes = A.K * 2 / SLOTS;
    const uint8_t *at = A.q + row * row_bytes + from * 2 / SLOTS;
    for (int64_t g = 0; g < columns / PAIR; ++g, at += 2 * PAIR / SLOTS) {
#pragma GCC unroll 8
      for (int i = 0; i < BAND * PAIR * 2 / SLOTS / 64; ++i, next += 64) prefetch(next);
      for (int half = 0; half < 2; ++half) {
        const uint8_t *rows = at + 8 * half * row_bytes;
        if constexpr (SLOTS == 4) {
          const __m256i nibbles = _mm256_set1_epi8(15);
          __m256i four[4];
          turn_bytes(rows, row_bytes, four);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            codes[g][i][half] = _mm256_and_si256(four[i], nibbles);
            codes[g][i + 4][half] = _mm256_and_si256(_mm256_srli_epi16(four[i], 4), nibbles);
          }
        } else {
          for (int part = 0; part < 2; ++part) {
            __m256i four[4];
            turn_bytes(rows + 16 * part, row_bytes, four);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
              codes[g][8 * part + 2 * i][half] = _mm256_srai_epi16(_mm256_slli_epi16(four[i], 8), 8);
              codes[g][8 * part + 2 * i + 1][half] = _mm256_srai_epi16(four[i], 8);
            }
          }
        }
      }
    }
    const int by_group = __builtin_ctzll(A.group / PAIR);
    const int64_t groups = ((columns / PAIR - 1) >> by_group) + 1, row_groups = A.K / A.group, all = A.N * row_groups;
    for (int half = 0; half < 2; ++half) {
      const int64_t first = (row + 8 * half) * row_groups + from / A.group;
      turn_scales<BAND>(A.scale, first, row_groups, groups, all, scale[0] + 8 * half);
      if (SHIFT) turn_scales<BAND>(A.offset, first, row_groups, groups, all, shift[0] + 8 * half);
    }
    if (SHIFT)
      for (int64_t i = 0; i < groups; ++i)
        for (int r = 0; r < BAND; ++r) shift[i][r] += 8.f * scale[i][r];
  }

  // sums [S, BAND] += x . the panel. Not inlined: its loop would look a thread's panel up again and again.
  template <bool SHIFT, int S>
  static __attribute__((noinline)) void multiply(const Panel &panel, const Block<SLOTS, BYTES, S> *x, int64_t groups,
                                                 int by_group, float (*sums)[BAND]) {
    const __m256i one = _mm256_set1_epi16(1);
    for (int64_t g = 0; g < groups; ++g, ++x) {
      constexpr int PARTS = SLOTS == 4 ? 1 : PLANES;
      __m256i parts[S][2][PARTS];
#pragma GCC unroll 3
      for (int plane = PLANES - 1; plane >= 0; --plane) {
        asm volatile("" ::: "memory");  // GCC would keep the codes for the next plane, which takes all registers
        __m256i now[S][2];
#pragma GCC unroll 16
        for (int w = 0; w < WORDS; ++w) {
#pragma GCC unroll 4
          for (int m = 0; m < S; ++m) {
            const __m256i with = _mm256_set1_epi32(x->words[plane][w][m]);
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
              const __m256i product = times(panel.codes[g][w][half], with);
              if (w == 0)
                now[m][half] = product;
              else
                add_in_place(now[m][half], product);
            }
          }
        }
#pragma GCC unroll 4
        for (int m = 0; m < S; ++m)
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half) {
            if constexpr (SLOTS == 4) {
              const __m256i wide = _mm256_madd_epi16(now[m][half], one);
              __m256i &all = parts[m][half][0];
              all = plane == PLANES - 1 ? wide : _mm256_add_epi32(_mm256_slli_epi32(all, 8), wide);
            } else {
              parts[m][half][plane] = now[m][half];
            }
          }
      }
#pragma GCC unroll 4
      for (int m = 0; m < S; ++m)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          const __m256 dot = dot_of<SLOTS, BYTES>(parts[m][half], x->zero[m]);
          const __m256 by = _mm256_load_ps(panel.scale[g >> by_group] + 8 * half);
          float *to = sums[m] + 8 * half;
          __m256 total = _mm256_fmadd_ps(dot, _mm256_mul_ps(by, _mm256_set1_ps(x->unit[m])), _mm256_load_ps(to));
          if (SHIFT)
            total = _mm256_fmadd_ps(_mm256_load_ps(panel.shift[g >> by_group] + 8 * half), _mm256_set1_ps(x->sum[m]),
                                    total);
          _mm256_store_ps(to, total);
        }
    }
  }

 private:
  INLINE __m256i times(__m256i codes, __m256i x) {
    return SLOTS == 4 ? _mm256_maddubs_epi16(codes, x) : _mm256_madd_epi16(codes, x);
  }
  // GCC 12 would sum all products last, in more registers than there are
  INLINE void add_in_place(__m256i &sums, __m256i more) {
    if constexpr (SLOTS == 4)
      asm("vpaddw %1, %0, %0" : "+x"(sums) : "x"(more));
    else
      asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(more));
  }
  // Sixteen bytes of each of eight rows, as four vectors of four bytes a row.
  INLINE void turn_bytes(const uint8_t *rows, int64_t stride, __m256i (&to)[4]) {
    const auto of_row = [=](int r) { return half_at(rows + r * stride); };
    __m256i v[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) v[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(of_row(r)), of_row(r + 4), 1);
    const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    to[0] = _mm256_unpacklo_epi64(a, c), to[1] = _mm256_unpackhi_epi64(a, c);
    to[2] = _mm256_unpacklo_epi64(b, d), to[3] = _mm256_unpackhi_epi64(b, d);
  }
};

// Sixteen rows of W from `row` on, of which the last `fresh` are wanted, times M <= AT_ONCE rows of x.
template <bool SHIFT, int SLOTS, int BYTES>
void band(const Grouped &A, int64_t row, int64_t fresh, const char *blocks, const Result &y, int64_t M) {
  static thread_local Panel<SLOTS, BYTES> panel;
  alignas(64) static thread_local float sums[AT_ONCE][BAND];
  std::memset(sums, 0, M * sizeof *sums);
  const int by_group = __builtin_ctzll(A.group / PAIR);
  const uint8_t *next = A.q + (row + BAND) * A.K * 2 / SLOTS;
  for (int64_t from = 0; from < A.K; from += panel.COLUMNS) {
    const int64_t columns = std::min(panel.COLUMNS, A.K - from);
    panel.template turn<SHIFT>(A, row, from, columns, next);
    tiles<TILE>(M, [&](auto size, int64_t m) {
      using X = Block<SLOTS, BYTES, size>;
      const X *x = reinterpret_cast<const X *>(blocks + m * (A.K / PAIR) * sizeof(Block<SLOTS, BYTES, 1>));
      Panel<SLOTS, BYTES>::template multiply<SHIFT>(panel, x + from / PAIR, columns / PAIR, by_group, sums + m);
    });
  }
  for (int64_t m = 0; m < M; ++m)
    Result::set(y, m, row + BAND - fresh, fresh, sums[m] + BAND - fresh);
}

// y = x W^T for M <= AT_ONCE rows of x; W has sixteen rows or more.
template <int SLOTS, int BYTES>
void multiply_rows(const Grouped &A, const float *x, const Result &y, int64_t M, int64_t threads) {
  if (M == 1) return multiply_lone<SLOTS, BYTES>(A, x, y, threads);
  static thread_local std::vector<char> space;
  const int64_t groups = A.K / PAIR, row = groups * sizeof(Block<SLOTS, BYTES, 1>);
  if (static_cast<int64_t>(space.size()) < M * row) space.resize(M * row);
  char *blocks = space.data();
  constexpr int64_t SOME = 16;  // groups of a job
  share((groups + SOME - 1) / SOME, M * A.K < THREADED / 8 ? 1 : threads, [&](int64_t job) {
    const int64_t end = std::min(groups, (job + 1) * SOME);
    tiles<TILE>(M, [&](auto size, int64_t m) {
      using X = Block<SLOTS, BYTES, size>;
      X *to = reinterpret_cast<X *>(blocks + m * row);
      for (int64_t g = job * SOME; g < end; ++g) to[g].fill(x + m * A.K + g * PAIR, A.K);
    });
  });
  each_band<BAND>(A.N, threads, [&](int64_t row, int64_t fresh) {
    if (SLOTS == 4 && A.offset.values)
      band<SLOTS == 4, SLOTS, BYTES>(A, row, fresh, blocks, y, M);
    else
      band<false, SLOTS, BYTES>(A, row, fresh, blocks, y, M);
  });
}

}  // namespace
