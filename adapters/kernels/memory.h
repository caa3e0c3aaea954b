// A head's memory S [K, V] under a few tokens of S <- diag(w) S + sum_p left_p right_p^T, read twice a token: a^T S
// and c^T S. Columns of S never meet, so a head is cut into blocks of columns that stay in the nearest cache. One sweep
// over a block writes token t's update and already reads token t+1's sums, so T tokens take T + 1 sweeps: the first
// reads the old state from memory, the last writes the new one. The order of additions never depends on B, H or the number of
// threads, so neither do the results.
#pragma once

#include "lanes.h"
#include "threads.h"
#include "vector.h"

namespace {

#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int64_t BLOCK = 128;  // columns: what is measured best, a row's neighbours come from memory together
#else
constexpr int64_t BLOCK = 64;  // 128 rows of them are 32 KB
#endif
constexpr int BAND = 8;        // rows of S per pass over the sums
constexpr int64_t TOKENS = 16, WIDTH = 256;  // what a call may have at most: tokens, and rows or columns of a head

struct Sums {
  alignas(64) float a[BLOCK];
  alignas(64) float c[BLOCK];
};

template <int PAIRS>
struct Update {  // S <- diag(w) S + sum_p left_p right_p^T; left stands at the head's row, right at the block's column
  const float *w, *left[PAIRS], *right[PAIRS];
};

struct Read {  // the rows whose sums with S are taken, [K] each
  const float *a, *c;
};

template <int ROWS, int PAIRS, bool WRITE, bool READ>
INLINE void band(const float *from, int64_t from_stride, float *to, int64_t to_stride, int64_t width, Update<PAIRS> now,
                 Read next, int64_t row, Sums &sums) {
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    float a = READ ? sums.a[j] : 0.f, c = READ ? sums.c[j] : 0.f;
#pragma GCC unroll 8
    for (int64_t i = row; i < row + ROWS; ++i) {
      float s = from[i * from_stride + j];
      if (WRITE) {
        s *= now.w[i];
        for (int p = 0; p < PAIRS; ++p) s += now.left[p][i] * now.right[p][j];
        to[i * to_stride + j] = s;
      }
      if (READ) a += next.a[i] * s, c += next.c[i] * s;
    }
    if (READ) sums.a[j] = a, sums.c[j] = c;
  }
}

// Rows [0, K) of `width` columns.
template <bool WRITE, bool READ, int PAIRS>
INLINE void sweep(const float *from, int64_t from_stride, float *to, int64_t to_stride, int64_t K, int64_t width,
                  Update<PAIRS> now, Read next, Sums &sums) {
  int64_t row = 0;
  for (; row + BAND <= K; row += BAND)
    band<BAND, PAIRS, WRITE, READ>(from, from_stride, to, to_stride, width, now, next, row, sums);
  for (; row < K; ++row) band<1, PAIRS, WRITE, READ>(from, from_stride, to, to_stride, width, now, next, row, sums);
}

// The last write of a block, past the caches; the block `next`, in rows as those of `to`, is on its way meanwhile.
template <int PAIRS>
INLINE void sweep_out(const float *from, int64_t from_stride, float *to, int64_t to_stride, int64_t K, int64_t width,
                      Update<PAIRS> now, const float *next) {
  for (int64_t i = 0; i < K; ++i)
    for (int64_t j = 0; j < width; j += LANES) {
      __builtin_prefetch(next + i * to_stride + j, 0, 2);
      Lanes s = load(from + i * from_stride + j) * all(now.w[i]);
      for (int p = 0; p < PAIRS; ++p) s = fma(all(now.left[p][i]), load(now.right[p] + j), s);
      stream(to + i * to_stride + j, s);
    }
}

// All T tokens of `width` columns. read(t) gives a token's `Read`; write(t, sums) takes its sums, puts out what follows
// from them and gives the `Update`. What lies between the first token and the last stays on the stack. `next`: the block
// of S0 that this thread will want next.
template <int PAIRS, typename R, typename W>
INLINE void columns(const float *S0, float *S1, const float *next, int64_t T, int64_t K, int64_t stride, int64_t width,
                    bool out, R read, W write) {
  alignas(64) float between[WIDTH * BLOCK];
  Sums sums{};
  sweep<false, true>(S0, stride, between, BLOCK, K, width, Update<PAIRS>{}, read(0), sums);
  const float *from = S0;
  int64_t from_stride = stride;
  for (int64_t t = 0; t < T; ++t) {
    const Update<PAIRS> now = write(t, sums);
    for (int64_t j = 0; j < width; ++j) sums.a[j] = sums.c[j] = 0.f;
    if (t + 1 < T)
      sweep<true, true>(from, from_stride, between, BLOCK, K, width, now, read(t + 1), sums);
    else if (out)
      sweep_out(from, from_stride, S1, stride, K, width, now, next);
    else
      sweep<true, false>(from, from_stride, S1, stride, K, width, now, Read{}, sums);
    from = between, from_stride = BLOCK;
  }
}

// run(from, width) for every block of V columns; a full one has a width that the compiler knows.
template <typename F>
INLINE void blocks(int64_t V, F run) {
  int64_t from = 0;
  for (; from + BLOCK <= V; from += BLOCK) run(from, BLOCK);
  if (from < V) run(from, V - from);
}

}  // namespace
