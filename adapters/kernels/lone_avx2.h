// One row of x on AVX2. W is read straight on, row by row, which is how memory gives most; sums of some columns of eight
// rows lie in the first cache until they are turned round, so that rows of W stand in the lanes as in the products of
// more rows of x (panel_avx2.h), and everything is rounded in the same order.
#pragma once

#include "numbers_avx2.h"

namespace {

constexpr int64_t EIGHT = 8;    // rows of W
constexpr int64_t VECTOR = 32;  // bytes of codes

// x where a vector of codes is: 64 columns of int4, 32 of int8.
template <int SLOTS, int BYTES>
struct Beside : Kept<SLOTS, BYTES> {
  using Kept<SLOTS, BYTES>::PLANES;
  static constexpr int GROUPS = SLOTS / 2, PARTS = SLOTS == 4 ? 1 : PLANES;
  __m256i digits[PLANES][2];  // of int4: of the codes in the lower and in the upper halves of bytes
  float unit[GROUPS], sum[GROUPS];
  int32_t zero[GROUPS];

  void fill(const float *x, int64_t columns) {
    if (columns < GROUPS * PAIR) std::memset(static_cast<void *>(this), 0, sizeof *this);
    for (int g = 0; g < GROUPS && g * PAIR < columns; ++g) {
      const Numbers<SLOTS, BYTES> now(x + g * PAIR);
      unit[g] = now.unit, sum[g] = now.sum, zero[g] = now.zero;
      for (int plane = 0; plane < PLANES; ++plane)
        if constexpr (SLOTS == 4)
          for (int half = 0; half < 2; ++half)
            std::memcpy(reinterpret_cast<char *>(digits[plane] + half) + 16 * g,
                        reinterpret_cast<const char *>(now.planes[plane]) + 16 * half, 16);
        else
          std::memcpy(digits[plane], now.planes[plane], sizeof digits[plane]);
    }
  }

  // The products of a vector of codes, summed as far as no lane's group matters.
  INLINE void add(const Beside &x, const uint8_t *codes, bool whole, __m256i (*to)[EIGHT]) {
    if constexpr (SLOTS == 4) {
      const __m256i nibbles = _mm256_set1_epi8(15);
      const __m256i now =
          whole ? vector_at(codes) : _mm256_inserti128_si256(_mm256_setzero_si256(), half_at(codes), 0);
      const __m256i low = _mm256_and_si256(now, nibbles), high = _mm256_and_si256(_mm256_srli_epi16(now, 4), nibbles);
      __m256i sums[PLANES];
#pragma GCC unroll 3
      for (int plane = 0; plane < PLANES; ++plane)
        sums[plane] = _mm256_add_epi16(_mm256_maddubs_epi16(low, x.digits[plane][0]),
                                       _mm256_maddubs_epi16(high, x.digits[plane][1]));
      if constexpr (BYTES > 1) {
        const __m256i one = _mm256_set1_epi16(1), up = _mm256_set1_epi16(256);
        __m256i all = _mm256_madd_epi16(sums[PLANES - 1], up);
        if constexpr (BYTES == 3)
          all = _mm256_slli_epi32(_mm256_add_epi32(all, _mm256_madd_epi16(sums[1], one)), 8);
        sums[0] = _mm256_add_epi32(all, _mm256_madd_epi16(sums[0], one));
      }
      _mm256_store_si256(to[0], sums[0]);
    } else {
      const __m256i low = _mm256_cvtepi8_epi16(half_at(codes));
      const __m256i high = _mm256_cvtepi8_epi16(half_at(codes + 16));
#pragma GCC unroll 2
      for (int plane = 0; plane < PLANES; ++plane)
        _mm256_store_si256(to[plane], _mm256_add_epi32(_mm256_madd_epi16(low, x.digits[plane][0]),
                                                       _mm256_madd_epi16(high, x.digits[plane][1])));
    }
  }

  // Those of eight rows -> the sum of each group of 32 columns, the rows in the lanes.
  INLINE void turn(const __m256i (&of)[EIGHT], __m256i (&groups)[GROUPS]) {
    __m256i fours[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) fours[i] = BYTES == 1 && SLOTS == 4 ? add_words(of + 4 * i) : add_fours(of + 4 * i);
    const __m256i first = _mm256_permute2x128_si256(fours[0], fours[1], 0x20);
    const __m256i second = _mm256_permute2x128_si256(fours[0], fours[1], 0x31);
    if constexpr (SLOTS == 4) groups[0] = first, groups[1] = second;
    else groups[0] = _mm256_add_epi32(first, second);
  }

 private:
  // Of four vectors, the sum of the four words in each half, side by side.
  INLINE __m256i add_fours(const __m256i *a) {
    const __m256i first = _mm256_add_epi32(_mm256_unpacklo_epi32(a[0], a[1]), _mm256_unpackhi_epi32(a[0], a[1]));
    const __m256i second = _mm256_add_epi32(_mm256_unpacklo_epi32(a[2], a[3]), _mm256_unpackhi_epi32(a[2], a[3]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(first, second), _mm256_unpackhi_epi64(first, second));
  }
  // The same of eight words of 16 bits. Sixteen codes of int4 times numbers of one byte fit in 16 bits.
  INLINE __m256i add_words(const __m256i *a) {
    const __m256i one = _mm256_set1_epi16(1);
    const auto pair = [&](__m256i a, __m256i b) { return _mm256_madd_epi16(_mm256_packs_epi32(a, b), one); };
    const auto wide = [&](__m256i a) { return _mm256_madd_epi16(a, one); };
    return pair(pair(wide(a[0]), wide(a[1])), pair(wide(a[2]), wide(a[3])));
  }
};

// Eight rows of W from `row` on, of which the last `fresh` are wanted, times x.
template <bool SHIFT, int SLOTS, int BYTES>
void lone(const Grouped &A, int64_t row, int64_t fresh, const Beside<SLOTS, BYTES> *x, const Result &y) {
  using X = Beside<SLOTS, BYTES>;
  // Vectors of a row's codes whose sums lie in the first cache; how far ahead of them memory is read.
  constexpr int64_t MOST = 8 * SLOTS / X::PARTS, AHEAD = 8 << 10;
  constexpr int EARLY = 6;  // eighths of it while codes are read, the others while sums are turned: it never rests
  const int64_t row_bytes = A.K * 2 / SLOTS, row_groups = A.K / A.group;
  const int by_group = __builtin_ctzll(A.group / PAIR);
  alignas(64) __m256i space[MOST][X::PARTS][EIGHT];
  alignas(64) float scales[MOST * X::GROUPS][EIGHT], shifts[SHIFT ? MOST * X::GROUPS : 1][EIGHT];
  const uint8_t *next = A.q + row * row_bytes + std::max<int64_t>(AHEAD, EIGHT * row_bytes);
  __m256 sums = _mm256_setzero_ps();
  for (int64_t from = 0; from < row_bytes; from += MOST * VECTOR, x += MOST) {
    const int64_t bytes = std::min(MOST * VECTOR, row_bytes - from), whole = bytes / VECTOR;
    const uint8_t *codes = A.q + row * row_bytes + from;
    for (int r = 0; r < EIGHT; ++r, codes += row_bytes) {
      const auto to = [&](int64_t v) { return reinterpret_cast<__m256i(*)[EIGHT]>(space[v][0] + r); };
      int64_t v = 0;
      const bool fetch = r * EARLY % 8 < EARLY;
      for (; v + 2 <= whole; v += 2) {
        if (fetch) prefetch(next), next += 64;
        __builtin_prefetch(codes + row_bytes + v * VECTOR, 0, 3);  // the next row, into the first cache
        X::add(x[v], codes + v * VECTOR, true, to(v));
        X::add(x[v + 1], codes + (v + 1) * VECTOR, true, to(v + 1));
      }
      if (v < whole) X::add(x[v], codes + v * VECTOR, true, to(v));
      if (bytes % VECTOR) X::add(x[whole], codes + whole * VECTOR, false, to(whole));
      const uint16_t *scale = A.scale.values + (row + 2 * EIGHT + r) * row_groups;
      const int64_t first = (from * SLOTS / 2 / PAIR) >> by_group, end = ((from + bytes) * SLOTS / 2 / PAIR) >> by_group;
      for (int64_t g = first; g < end; g += 32) prefetch(scale + g);
    }
    const int64_t groups = bytes * SLOTS / 2 / PAIR, scale_groups = ((groups - 1) >> by_group) + 1;
    const int64_t first = row * row_groups + ((from * SLOTS / 2 / PAIR) >> by_group), all = A.N * row_groups;
    turn_scales<EIGHT>(A.scale, first, row_groups, scale_groups, all, scales[0]);
    if (SHIFT) {
      turn_scales<EIGHT>(A.offset, first, row_groups, scale_groups, all, shifts[0]);
      // code scale + offset = (code - 8) scale + (offset + 8 scale), which cancels less than the sum of the two
      for (int64_t i = 0; i < scale_groups; ++i)
        for (int r = 0; r < EIGHT; ++r) shifts[i][r] += 8.f * scales[i][r];
    }
    for (int64_t v = 0; v * VECTOR < bytes; ++v) {
#pragma GCC unroll 4
      for (int i = 0; i < (8 - EARLY) / 2; ++i, next += 64) prefetch(next);
      __m256i turned[X::PARTS][X::GROUPS];
#pragma GCC unroll 2
      for (int part = 0; part < X::PARTS; ++part) X::turn(space[v][part], turned[part]);
#pragma GCC unroll 2
      for (int g = 0; g < X::GROUPS; ++g) {
        const int64_t group = v * X::GROUPS + g, at = group >> by_group;
        if (group >= groups) break;
        __m256i parts[X::PARTS];
#pragma GCC unroll 2
        for (int part = 0; part < X::PARTS; ++part) parts[part] = turned[part][g];
        const __m256 dot = dot_of<SLOTS, BYTES>(parts, x[v].zero[g]);
        sums = _mm256_fmadd_ps(dot, _mm256_mul_ps(_mm256_load_ps(scales[at]), _mm256_set1_ps(x[v].unit[g])), sums);
        if (SHIFT) sums = _mm256_fmadd_ps(_mm256_load_ps(shifts[at]), _mm256_set1_ps(x[v].sum[g]), sums);
      }
    }
  }
  alignas(32) float values[EIGHT];
  _mm256_store_ps(values, sums);
  Result::set(y, 0, row + EIGHT - fresh, fresh, values + EIGHT - fresh);
}

// W has eight rows or more.
template <int SLOTS, int BYTES>
void multiply_lone(const Grouped &A, const float *x, const Result &y, int64_t threads) {
  using X = Beside<SLOTS, BYTES>;
  constexpr int64_t COLUMNS = X::GROUPS * PAIR;
  static thread_local std::vector<X> space;
  const int64_t count = (A.K + COLUMNS - 1) / COLUMNS;
  if (static_cast<int64_t>(space.size()) < count) space.resize(count);
  X *beside = space.data();
  for (int64_t i = 0; i < count; ++i) beside[i].fill(x + i * COLUMNS, std::min(COLUMNS, A.K - i * COLUMNS));
  each_band<EIGHT>(A.N, threads, [&](int64_t row, int64_t fresh) {
    if (SLOTS == 4 && A.offset.values)
      lone<SLOTS == 4>(A, row, fresh, beside, y);
    else
      lone<false>(A, row, fresh, beside, y);
  });
}

}  // namespace
