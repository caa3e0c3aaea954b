// y = x W^T for a matrix stored as bf16 or fp32; the reference is the op in adapters/formats/dense.py.
//
// Weights become fp32 in registers and are multiplied in fp32. A sum runs over CHUNK columns in sixteen lanes, in the
// order of the columns; how many rows of x or of W are in flight and the threads change nothing in it. Up to FEW rows of
// x a matrix is read once and widened for each tile of rows. Above, blocks of it are widened into the cache and stay
// there for all rows.

#include "product.h"

namespace {

constexpr int64_t STEP = 32;        // columns read at once
constexpr int64_t FEW = 8;          // rows of x
constexpr int64_t BLOCK_ROWS = 32;  // of W, widened at a time

#if defined(__AVX512F__)  // accumulators that fit the registers: rows of W times rows of x
constexpr int MOST = 8, BLOCK_R = 4, BLOCK_M = 6;
constexpr int tile_rows(int m) { return m <= 4 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int MOST = 4, BLOCK_R = 2, BLOCK_M = 2;
constexpr int tile_rows(int m) { return m == 2 ? 2 : 1; }  // one row straight on after another: 1.1 times as fast
#elif defined(FLUVIAL_NEON)
constexpr int MOST = 4, BLOCK_R = 2, BLOCK_M = 2;
constexpr int tile_rows(int m) { return m == 1 ? 4 : m == 2 ? 2 : 1; }
#else
constexpr int MOST = 2, BLOCK_R = 1, BLOCK_M = 2;
constexpr int tile_rows(int m) { return m == 1 ? 2 : 1; }
#endif

template <typename T>
struct Dense {
  const T *weight;
  int64_t K;

  int64_t row_bytes() const { return K * static_cast<int64_t>(sizeof(T)); }
};

// total[m * stride + r] += x[m] . W[row + r] over one chunk; x stands at its first column.
template <int R, int M, typename T>
INLINE void chunk(const Dense<T> &A, int64_t row, int64_t from, int64_t columns, const float *x, int64_t x_stride,
                  float *total, int64_t stride) {
  const int64_t ahead = ahead_of(R * A.row_bytes());
  const T *weight[R];
  Lanes sums[R][M];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    weight[r] = A.weight + (row + r) * A.K + from;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[r][m] = zero();
  }
  for (int64_t c = 0; c < columns; c += STEP) {
    Lanes w[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const char *later = reinterpret_cast<const char *>(weight[r] + c) + ahead;
      fetch_ahead(later);
      if (sizeof(T) == 4) fetch_ahead(later + 64);
      w[r][0] = load(weight[r] + c), w[r][1] = load(weight[r] + c + 16);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Lanes activations = load(x + m * x_stride + c + 16 * half);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r][m] = fma(w[r][half], activations, sums[r][m]);
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) total[m * stride + r] += sum(sums[r][m]);
}

template <int R, int M, typename T>
void tile(const Dense<T> &A, int64_t row, const float *x, const Result &y, int64_t first) {
  float total[M * R] = {};
  for (int64_t from = 0; from < A.K; from += CHUNK)
    chunk<R, M>(A, row, from, std::min(CHUNK, A.K - from), x + from, A.K, total, R);
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) Result::set(y, first + m, row + r, total[m * R + r]);
}

template <typename T>
void few(const Dense<T> &A, int64_t begin, int64_t end, const float *x, const Result &y, int64_t M) {
  tiles<MOST>(M, [&](auto size, int64_t m) {
    constexpr int R = tile_rows(size);
    int64_t row = begin;
    for (; row + R <= end; row += R) tile<R, size>(A, row, x + m * A.K, y, m);
    for (; row < end; ++row) tile<1, size>(A, row, x + m * A.K, y, m);
  });
}

template <int M>
INLINE void block_rows(const Dense<float> &W, int64_t rows, int64_t columns, const float *x, int64_t K, float *total) {
  int64_t row = 0;
  for (; row + BLOCK_R <= rows; row += BLOCK_R)
    chunk<BLOCK_R, M>(W, row, 0, columns, x, K, total + row, BLOCK_ROWS);
  for (; row < rows; ++row) chunk<1, M>(W, row, 0, columns, x, K, total + row, BLOCK_ROWS);
}

template <typename T>
void many(const Dense<T> &A, int64_t begin, int64_t end, const float *x, const Result &y, int64_t M) {
  static thread_local std::vector<float> space;
  space.resize(BLOCK_ROWS * (CHUNK + M));
  float *block = space.data(), *total = block + BLOCK_ROWS * CHUNK;
  const int64_t rows = end - begin;
  std::fill(total, total + M * BLOCK_ROWS, 0.f);
  const Dense<float> W{block, CHUNK};
  for (int64_t from = 0; from < A.K; from += CHUNK) {
    const int64_t columns = std::min(CHUNK, A.K - from);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; c += 16)
        store(block + r * CHUNK + c, load(A.weight + (begin + r) * A.K + from + c));
    tiles<BLOCK_M>(M, [&](auto size, int64_t m) {
      block_rows<size>(W, rows, columns, x + m * A.K + from, A.K, total + m * BLOCK_ROWS);
    });
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t r = 0; r < rows; ++r) Result::set(y, m, begin + r, total[m * BLOCK_ROWS + r]);
}

template <typename T>
void multiply(const Dense<T> &A, const void *given, Result y, int64_t M, int64_t threads) {
  const float *x = widened_rows(given, M * A.K, y.bf16);
  const int64_t step = M > FEW ? BLOCK_ROWS : rows_of_job(y.N, A.row_bytes(), 8, threads);
  share((y.N + step - 1) / step, threads, [&](int64_t job) {
    const int64_t begin = job * step, end = std::min(begin + step, y.N);
    if (M > FEW)
      many(A, begin, end, x, y, M);
    else
      few(A, begin, end, x, y, M);
  });
}

}  // namespace

// x, y [M, K], [M, N], both bf16 or both fp32; K a multiple of 32.
KERNEL(dense_linear)(const void *x, const void *weight, void *y, int64_t M, int64_t N, int64_t K, int64_t bf16,
                     int64_t bf16_weight, int64_t threads) {
  if (bf16_weight)
    multiply(Dense<uint16_t>{static_cast<const uint16_t *>(weight), K}, x, {y, N, bf16}, M, threads);
  else
    multiply(Dense<float>{static_cast<const float *>(weight), K}, x, {y, N, bf16}, M, threads);
}
RECORDED(dense_linear)
