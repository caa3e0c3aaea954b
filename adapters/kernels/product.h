// What the products with every kind of matrix share: where a result goes, tiles of rows of x, prefetching.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "threads.h"

namespace {

constexpr int64_t CHUNK = 2048;    // columns of one sum
constexpr int64_t JOB = 512 << 10;  // about as many bytes of W are read at a stretch

// The rows of W for which a thread comes back: whole bands, as many for each thread.
INLINE int64_t rows_of_job(int64_t rows, int64_t row_bytes, int64_t band, int64_t threads) {
  const int64_t bands = (rows + band - 1) / band;
  const int64_t jobs = threads * std::max<int64_t>(1, (rows * row_bytes / threads + JOB / 2) / JOB);
  return (bands + jobs - 1) / jobs * band;
}

// How far ahead to fetch, in bytes, for tiles of so many bytes: the same place some tiles further on, or in a long row a
// little further. With AVX2 always a little further and into the first cache (1.1 to 1.4 times as fast, on Zen 3).
INLINE int64_t ahead_of(int64_t bytes) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  static_cast<void>(bytes);
  return 1 << 10;
#else
  constexpr int64_t near = 2 << 10, far = 8 << 10;
  return bytes > 2 * far ? near : std::max<int64_t>(1, far / bytes) * bytes;
#endif
}
INLINE void fetch_ahead(const void *p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  __builtin_prefetch(p, 0, 3);
#else
  __builtin_prefetch(p, 0, 2);
#endif
}
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }  // into the second cache: the first is full of x

struct Result {  // [M, N] in fp32 or bf16
  void *y;
  int64_t N, bf16;

  INLINE void set(const Result &y, int64_t m, int64_t n, float value) {
    if (y.bf16)
      static_cast<uint16_t *>(y.y)[m * y.N + n] = narrowed(value);
    else
      static_cast<float *>(y.y)[m * y.N + n] = value;
  }
  INLINE void set(const Result &y, int64_t m, int64_t n, int64_t count, const float *values) {
    if (y.bf16)
      for (int64_t i = 0; i < count; ++i) static_cast<uint16_t *>(y.y)[m * y.N + n + i] = narrowed(values[i]);
    else
      std::memcpy(static_cast<float *>(y.y) + m * y.N + n, values, count * sizeof(float));
  }
};

// run(size, first) for M rows of x in as few tiles as there can be, of much the same size; a constant of at most MAX.
template <int MAX, int SIZE = MAX, typename F>
INLINE void with_size(int64_t size, int64_t first, F run) {
  if (size == SIZE) return run(std::integral_constant<int, SIZE>{}, first);
  if constexpr (SIZE > 1) with_size<MAX, SIZE - 1>(size, first, run);
}
template <int MAX, typename F>
INLINE void tiles(int64_t M, F run) {
  for (int64_t left = (M + MAX - 1) / MAX, first = 0; left > 0; --left) {
    const int64_t size = (M - first) / left;
    with_size<MAX>(size, first, run);
    first += size;
  }
}

// x [M, K] in fp32; a copy in this thread's own memory where it is bf16.
INLINE const float *widened_rows(const void *x, int64_t values, int64_t bf16) {
  if (!bf16) return static_cast<const float *>(x);
  static thread_local std::vector<float> wide;
  if (static_cast<int64_t>(wide.size()) < values) wide.resize(values);
  float *to = wide.data();
  const uint16_t *narrow = static_cast<const uint16_t *>(x);
  for (int64_t i = 0; i < values; ++i) to[i] = widened(narrow[i]);
  return to;
}

}  // namespace
