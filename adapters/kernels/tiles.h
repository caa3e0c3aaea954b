// Small products of matrices in fp32, for the chunk forms: a tile of sums stays in registers while its terms pass. The left
// matrix is read a value at a time, so it may lie in any order; the right one is read in rows of whole vectors.
#pragma once

#include <type_traits>
#include <vector>

#include "lanes.h"

namespace {

#if defined(__AVX512F__)  // sums that fit the registers
constexpr int64_t ROWS = 8, PARTS = 2;
#elif defined(__AVX2__) || defined(FLUVIAL_NEON)
constexpr int64_t ROWS = 4, PARTS = 1;
#else
constexpr int64_t ROWS = 2, PARTS = 1;
#endif
constexpr int64_t PANEL = 16 * PARTS;  // columns of a tile

INLINE int64_t padded(int64_t width) { return (width + PANEL - 1) / PANEL * PANEL; }

template <int R, int P = PARTS>
struct Tile {
  Lanes at[R][P];

#define TILE inline __attribute__((always_inline)) void
  TILE clear() {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) at[r][p] = zero();
  }
  TILE read(const float *from, int64_t stride, float scale = 1.f) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) at[r][p] = load(from + r * stride + 16 * p) * all(scale);
  }
  TILE scale(const float *by) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) at[r][p] = at[r][p] * all(by[r]);
  }
  TILE write(float *to, int64_t stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) store(to + r * stride + 16 * p, at[r][p]);
  }
  // at[r] += sum over k < K of A[r row + k column] B[k stride ...]
  TILE add(const float *A, int64_t row, int64_t column, const float *B, int64_t stride, int64_t K) {
    for (int64_t k = 0; k < K; ++k, A += column, B += stride) {
      Lanes b[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) b[p] = load(B + 16 * p);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Lanes a = all(A[r * row]);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) at[r][p] = fma(a, b[p], at[r][p]);
      }
    }
  }
  // at[r] += sum over s < r of N[r stride + s] at[s], row by row: (I - N)^-1 for a strictly lower N
  TILE substitute(const float *N, int64_t stride) {
#pragma GCC unroll 16
    for (int r = 1; r < R; ++r)
#pragma GCC unroll 16
      for (int s = 0; s < r; ++s) {
        const Lanes a = all(N[r * stride + s]);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) at[r][p] = fma(a, at[s][p], at[r][p]);
      }
  }
#undef TILE
};

// run(R, i) for tiles of R rows from row i on; R is a constant.
template <typename F>
INLINE void tiles(int64_t rows, const F &run) {
  int64_t i = 0;
  for (; i + ROWS <= rows; i += ROWS) run(std::integral_constant<int, ROWS>{}, i);
  for (; i < rows; ++i) run(std::integral_constant<int, 1>{}, i);
}

// Rows of a head lie a page or more apart, where the processor fetches nothing on its own.
INLINE void soon(const float *p) { __builtin_prefetch(p, 0, 2); }
INLINE void soon_written(const float *p) { __builtin_prefetch(p, 1, 2); }

// x [width] times a number -> to [PANEL], zeros at the end.
INLINE void scaled(const float *x, int64_t width, float by, float *to) {
  if (width >= PANEL) {
    for (int64_t j = 0; j < PANEL; j += 16) store(to + j, load(x + j) * all(by));
  } else {
    for (int64_t j = 0; j < PANEL; ++j) to[j] = j < width ? x[j] * by : 0.f;
  }
}

// x [rows, width], rows `stride` apart, -> to [panels, rows, PANEL], zeros in the columns that no panel fills; and back.
INLINE void into_panels(const float *x, int64_t stride, float *to, int64_t rows, int64_t width) {
  for (int64_t from = 0; from < width; from += PANEL)
    for (int64_t i = 0; i < rows; ++i, to += PANEL) scaled(x + i * stride + from, width - from, 1.f, to);
}
INLINE void from_panels(const float *panels, float *x, int64_t stride, int64_t rows, int64_t width) {
  for (int64_t from = 0; from < width; from += PANEL)
    for (int64_t i = 0; i < rows; ++i, panels += PANEL)
      std::memcpy(x + i * stride + from, panels, sizeof(float) * (width - from < PANEL ? width - from : PANEL));
}

// The same for x^T, where x [columns, rows] is packed.
INLINE void into_panels_transposed(const float *x, float *to, int64_t columns, int64_t rows) {
  for (int64_t from = 0; from < columns; from += PANEL)
    for (int64_t i = 0; i < rows; ++i, to += PANEL)
      for (int64_t j = 0; j < PANEL; ++j) to[j] = from + j < columns ? x[(from + j) * rows + i] : 0.f;
}
INLINE void from_panels_transposed(const float *panels, float *x, int64_t columns, int64_t rows) {
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t i = 0; i < rows; ++i) x[j * rows + i] = panels[(j / PANEL * rows + i) * PANEL + j % PANEL];
}

// A thread's own memory of that many floats; contents are those of its last use.
INLINE float *scratch(int64_t floats) {
  static thread_local std::vector<float> space;
  if (static_cast<int64_t>(space.size()) < floats + 16) space.resize(floats + 16);
  return space.data() + (64 - reinterpret_cast<uintptr_t>(space.data()) % 64) % 64 / sizeof(float);
}

}  // namespace
