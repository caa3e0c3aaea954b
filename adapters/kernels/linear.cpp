// y = x W^T for a matrix stored as int4, int8, bf16 or fp32; the references are the ops in adapters/formats/.
//
// Weights become fp32 in registers, scales applied, and are multiplied in fp32, so a result differs from that of the
// unpacked matrix by rounding alone. A sum runs over CHUNK columns in sixteen lanes, in the order of the columns; how many
// rows of x or of W are in flight and the threads change nothing in it. With AVX-512 VNNI up to `integer_rows` rows of x
// go another way (integers.h), as exact, so there a row may round differently in a large batch.
//
// Up to FEW rows of x a matrix is read once and unpacked for each tile of rows. Above, blocks of it are unpacked into the
// cache and stay there for all rows.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "integers.h"
#include "threads.h"

namespace {

constexpr int64_t CHUNK = 2048;     // columns of one sum
constexpr int64_t PAIR = 32;        // columns read at once
constexpr int64_t FEW = 8;          // rows of x
constexpr int64_t JOB = 64 << 10;   // bytes of W for which a thread comes back
constexpr int64_t BLOCK_ROWS = 32;  // of W, unpacked at a time

#if defined(__AVX512F__)  // accumulators that fit the registers: rows of W times rows of x
constexpr int MOST = 8, BLOCK_R = 4, BLOCK_M = 6;
constexpr int tile_rows(int m) { return m <= 4 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int MOST = 4, BLOCK_R = 2, BLOCK_M = 2;
constexpr int tile_rows(int m) { return m == 1 ? 4 : m == 2 ? 2 : 1; }
#else
constexpr int MOST = 2, BLOCK_R = 1, BLOCK_M = 2;
constexpr int tile_rows(int m) { return m == 1 ? 2 : 1; }
#endif

// How far ahead to prefetch, in bytes: the same place some tiles of R rows further on, or in a long row a little further.
INLINE int64_t ahead_of(int64_t bytes) {
  constexpr int64_t near = 2 << 10, far = 8 << 10;
  return bytes > 2 * far ? near : std::max<int64_t>(1, far / bytes) * bytes;
}
INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }  // into the second cache: the first is full of x

struct Scales {  // [out, in / group], fp16 or bf16
  const uint16_t *values;
  int64_t bf16;

  void read(int64_t from, int64_t n, float *to) const {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(to + i, bf16 ? load(values + from + i) : load_half(values + from + i));
    for (; i < n; ++i) to[i] = bf16 ? widened(values[from + i]) : from_half(values[from + i]);
  }
};

// A matrix W [N, K] gives a Reader of R of its rows, for one chunk: begin(i) before its i-th group, pair(r, c) for 32 columns.

struct Grouped {
  const uint8_t *q;
  Scales scale, offset;
  int64_t K, group;
};

struct Int4 : Grouped {
  static constexpr int HALVES = 2;

  int64_t row_bytes() const { return K / 2; }

  template <int R>
  struct Reader {
    const uint8_t *q[R];
    int64_t ahead;
    float scale[R][CHUNK / PAIR], offset[R][CHUNK / PAIR];
    Nibbles table[R];

    Reader(const Int4 &A, int64_t row, int64_t from, int64_t columns) : ahead(ahead_of(R * A.row_bytes())) {
      const int64_t groups = columns / A.group;
      for (int r = 0; r < R; ++r, ++row) {
        q[r] = A.q + (row * A.K + from) / 2;
        const int64_t first = (row * A.K + from) / A.group;
        A.scale.read(first, groups, scale[r]);
        if (A.offset.values)
          A.offset.read(first, groups, offset[r]);
        else
          for (int64_t i = 0; i < groups; ++i) offset[r][i] = -8.f * scale[r][i];
      }
    }
    inline __attribute__((always_inline)) void begin(int64_t i) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) table[r] = Nibbles::of(scale[r][i], offset[r][i]);
    }
    inline __attribute__((always_inline)) void pair(int r, int64_t c, Lanes (&w)[2]) const {
      prefetch(q[r] + c / 2 + ahead);
      table[r].read(q[r] + c / 2, w);
    }
  };
};

struct Int8 : Grouped {
  static constexpr int HALVES = 1;

  int64_t row_bytes() const { return K; }

  template <int R>
  struct Reader {
    const int8_t *q[R];
    int64_t ahead;
    float scale[R][CHUNK / PAIR];
    Lanes by[R];

    Reader(const Int8 &A, int64_t row, int64_t from, int64_t columns) : ahead(ahead_of(R * A.row_bytes())) {
      for (int r = 0; r < R; ++r, ++row) {
        q[r] = reinterpret_cast<const int8_t *>(A.q) + row * A.K + from;
        A.scale.read((row * A.K + from) / A.group, columns / A.group, scale[r]);
      }
    }
    inline __attribute__((always_inline)) void begin(int64_t i) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) by[r] = all(scale[r][i]);
    }
    inline __attribute__((always_inline)) void pair(int r, int64_t c, Lanes (&w)[2]) const {
      prefetch(q[r] + c + ahead);
      w[0] = load(q[r] + c) * by[r];
      w[1] = load(q[r] + c + 16) * by[r];
    }
  };
};

template <typename T>
struct Dense {
  const T *weight;
  int64_t K, group = CHUNK;

  int64_t row_bytes() const { return K * static_cast<int64_t>(sizeof(T)); }

  template <int R>
  struct Reader {
    const T *weight[R];
    int64_t ahead;

    Reader(const Dense &A, int64_t row, int64_t from, int64_t) : ahead(ahead_of(R * A.row_bytes())) {
      for (int r = 0; r < R; ++r, ++row) weight[r] = A.weight + row * A.K + from;
    }
    inline __attribute__((always_inline)) void begin(int64_t) {}
    inline __attribute__((always_inline)) void pair(int r, int64_t c, Lanes (&w)[2]) const {
      const char *later = reinterpret_cast<const char *>(weight[r] + c) + ahead;
      prefetch(later);
      if (sizeof(T) == 4) prefetch(later + 64);
      w[0] = load(weight[r] + c), w[1] = load(weight[r] + c + 16);
    }
  };
};

// total[m * stride + r] += x[m] . W[row + r] over one chunk; x stands at its first column.
template <int R, int M, typename Matrix>
INLINE void chunk(const Matrix &A, int64_t row, int64_t from, int64_t columns, const float *x, int64_t x_stride,
                  float *total, int64_t stride) {
  typename Matrix::template Reader<R> reader(A, row, from, columns);
  Lanes sums[R][M];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[r][m] = zero();
  for (int64_t c = 0, group = 0; c < columns; ++group) {
    reader.begin(group);
    for (const int64_t end = std::min(c + A.group, columns); c < end; c += PAIR) {
      Lanes w[R][2];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) reader.pair(r, c, w[r]);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const Lanes activations = load(x + m * x_stride + c + 16 * half);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) sums[r][m] = fma(w[r][half], activations, sums[r][m]);
        }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) total[m * stride + r] += sum(sums[r][m]);
}

struct Result {  // [M, N] in fp32 or bf16
  void *y;
  int64_t N, bf16;

  INLINE void set(const Result &y, int64_t m, int64_t n, float value) {
    if (y.bf16)
      static_cast<uint16_t *>(y.y)[m * y.N + n] = narrowed(value);
    else
      static_cast<float *>(y.y)[m * y.N + n] = value;
  }
};

template <int R, int M, typename Matrix>
void tile(const Matrix &A, int64_t row, const float *x, const Result &y, int64_t first) {
  float total[M * R] = {};
  for (int64_t from = 0; from < A.K; from += CHUNK)
    chunk<R, M>(A, row, from, std::min(CHUNK, A.K - from), x + from, A.K, total, R);
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) Result::set(y, first + m, row + r, total[m * R + r]);
}

template <int M, typename Matrix>
void rows(const Matrix &A, int64_t begin, int64_t end, const float *x, const Result &y, int64_t first) {
  constexpr int R = tile_rows(M);
  for (; begin + R <= end; begin += R) tile<R, M>(A, begin, x, y, first);
  for (; begin < end; ++begin) tile<1, M>(A, begin, x, y, first);
}

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

template <typename Matrix>
void few(const Matrix &A, int64_t begin, int64_t end, const float *x, const Result &y, int64_t M) {
  tiles<MOST>(M, [&](auto size, int64_t m) { rows<size>(A, begin, end, x + m * A.K, y, m); });
}

// Rows [begin, end) of one chunk of W in fp32, CHUNK apart.
template <typename Matrix>
void unpack(const Matrix &A, int64_t begin, int64_t end, int64_t from, int64_t columns, float *to) {
  for (; begin < end; ++begin, to += CHUNK) {
    typename Matrix::template Reader<1> reader(A, begin, from, columns);
    for (int64_t c = 0, group = 0; c < columns; ++group) {
      reader.begin(group);
      for (const int64_t stop = std::min(c + A.group, columns); c < stop; c += PAIR) {
        Lanes w[2];
        reader.pair(0, c, w);
        store(to + c, w[0]), store(to + c + 16, w[1]);
      }
    }
  }
}

template <int M>
INLINE void block_rows(const Dense<float> &W, int64_t rows, int64_t columns, const float *x, int64_t K, float *total) {
  int64_t row = 0;
  for (; row + BLOCK_R <= rows; row += BLOCK_R)
    chunk<BLOCK_R, M>(W, row, 0, columns, x, K, total + row, BLOCK_ROWS);
  for (; row < rows; ++row) chunk<1, M>(W, row, 0, columns, x, K, total + row, BLOCK_ROWS);
}

template <typename Matrix>
void many(const Matrix &A, int64_t begin, int64_t end, const float *x, const Result &y, int64_t M) {
  static thread_local std::vector<float> space;
  space.resize(BLOCK_ROWS * (CHUNK + M) + 32);
  float *block = space.data(), *total = block + BLOCK_ROWS * CHUNK;
  const int64_t rows = end - begin;
  std::fill(total, total + M * BLOCK_ROWS, 0.f);
  const Dense<float> W{block, CHUNK};
  for (int64_t from = 0; from < A.K; from += CHUNK) {
    const int64_t columns = std::min(CHUNK, A.K - from);
    unpack(A, begin, end, from, columns, block);
    tiles<BLOCK_M>(M, [&](auto size, int64_t m) {
      block_rows<size>(W, rows, columns, x + m * A.K + from, A.K, total + m * BLOCK_ROWS);
    });
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t r = 0; r < rows; ++r) Result::set(y, m, begin + r, total[m * BLOCK_ROWS + r]);
}

#if defined(__AVX512VNNI__)

constexpr int64_t integer_rows(int halves) { return halves == 2 ? FEW : 2; }  // of x; with more, fp32 is faster

// One chunk's scales, repeated for every 32 columns; a vector may reach past its end.
struct Spread {
  float values[CHUNK / PAIR + 16] = {};

  void read(const Scales &from, int64_t first, int64_t columns, int64_t group) {
    const int64_t pairs = columns / PAIR;
    const int shift = __builtin_ctzll(group / PAIR);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i index = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(shift));
    for (int64_t i = 0; i < pairs; i += 16) {
      const int64_t n = ((std::min<int64_t>(16, pairs - i) - 1) >> shift) + 1;
      const __m256i bits = _mm256_maskz_loadu_epi16(0xffffu >> (16 - n), from.values + first + (i >> shift));
      const __m512 wide = from.bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))
                                    : _mm512_cvtph_ps(bits);
      _mm512_storeu_ps(values + i, _mm512_permutexvar_ps(index, wide));
    }
  }
};

template <int R, int M, bool SHIFT, int HALVES>
void integer_tile(const Grouped &A, int64_t row, const Integers<HALVES> *x, int64_t stride, const Result &y,
                  int64_t first) {
  constexpr int64_t STEP = Integers<HALVES>::COLUMNS;
  const int64_t row_bytes = A.K / HALVES, ahead = ahead_of(R * row_bytes);
  __m512 sums[R][M];
#pragma GCC unroll 8
  for (int i = 0; i < R * M; ++i) sums[i / M][i % M] = _mm512_setzero_ps();
  Spread scale[R], offset[SHIFT ? R : 1];
  for (int64_t from = 0; from < A.K; from += CHUNK) {
    const int64_t columns = std::min(CHUNK, A.K - from);
    for (int r = 0; r < R; ++r) {
      const int64_t at = ((row + r) * A.K + from) / A.group;
      scale[r].read(A.scale, at, columns, A.group);
      if (SHIFT) {  // code scale + offset = (code - 8) scale + (offset + 8 scale), which cancels less
        offset[r].read(A.offset, at, columns, A.group);
        for (int64_t i = 0; i < CHUNK / PAIR; ++i) offset[r].values[i] += 8.f * scale[r].values[i];
      }
    }
    const uint8_t *q = A.q + (row * A.K + from) / HALVES;
    const auto step = [&](int64_t c, __mmask64 mask) __attribute__((always_inline)) {
      __m512i codes[R][HALVES];
      __m512 by[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const uint8_t *at = q + r * row_bytes + c / HALVES;
        prefetch(at + ahead);
        codes_of<HALVES>(at, mask, codes[r]);
        by[r] = by_lane<HALVES>(scale[r].values + c / PAIR);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Integers<HALVES> &now = x[m * stride];
        const __m512i start = _mm512_load_si512(now.start);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512 dot = _mm512_cvtepi32_ps(Integers<HALVES>::dot(now, codes[r], start));
          sums[r][m] = _mm512_fmadd_ps(dot, _mm512_mul_ps(by[r], _mm512_load_ps(now.unit)), sums[r][m]);
          if (SHIFT)
            sums[r][m] = _mm512_fmadd_ps(by_lane<HALVES>(offset[r].values + c / PAIR), _mm512_load_ps(now.sum),
                                         sums[r][m]);
        }
      }
      ++x;
    };
    int64_t c = 0;
    for (; c + STEP <= columns; c += STEP) step(c, ~0ull);
    if (c < columns) step(c, ~0ull >> (64 - (columns - c) / HALVES));
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) Result::set(y, first + m, row + r, sum(Lanes{sums[r][m]}));
}

template <int M, bool SHIFT, int HALVES>
void integer_tiles(const Grouped &A, int64_t row, int64_t end, const Integers<HALVES> *x, int64_t stride,
                  const Result &y, int64_t first) {
  constexpr int R = M <= 2 ? 4 : 2;
  for (; row + R <= end; row += R) integer_tile<R, M, SHIFT>(A, row, x, stride, y, first);
  for (; row < end; ++row) integer_tile<1, M, SHIFT>(A, row, x, stride, y, first);
}

template <int HALVES>
void multiply_integers(const Grouped &A, const float *x, const Result &y, int64_t M, int64_t threads) {
  const int64_t stride = (A.K + Integers<HALVES>::COLUMNS - 1) / Integers<HALVES>::COLUMNS;
  static thread_local std::vector<Integers<HALVES>> space;
  if (static_cast<int64_t>(space.size()) < M * stride) space.resize(M * stride);
  Integers<HALVES> *integers = space.data();
  for (int64_t i = 0; i < M * stride; ++i) {
    const int64_t c = i % stride * Integers<HALVES>::COLUMNS;
    integers[i].fill(x + i / stride * A.K + c, std::min(A.K - c, Integers<HALVES>::COLUMNS));
  }
  const int64_t step = std::max<int64_t>(1, JOB / (A.K / HALVES) / 8) * 8;
  share((y.N + step - 1) / step, threads, [&](int64_t job) {
    const int64_t end = std::min((job + 1) * step, y.N);
    tiles<MOST>(M, [&](auto size, int64_t m) {
      const Integers<HALVES> *from = integers + m * stride;
      if (HALVES == 2 && A.offset.values)
        integer_tiles<size, HALVES == 2>(A, job * step, end, from, stride, y, m);
      else
        integer_tiles<size, false>(A, job * step, end, from, stride, y, m);
    });
  });
}

#endif

template <typename Matrix>
void multiply(const Matrix &A, const void *given, Result y, int64_t M, int64_t threads) {
  static thread_local std::vector<float> wide;
  const float *x = static_cast<const float *>(given);
  if (y.bf16) {
    const uint16_t *narrow = static_cast<const uint16_t *>(given);
    wide.resize(M * A.K);
    for (int64_t i = 0; i < M * A.K; ++i) wide[i] = widened(narrow[i]);
    x = wide.data();
  }
#if defined(__AVX512VNNI__)
  if constexpr (std::is_base_of<Grouped, Matrix>::value)
    if (M <= integer_rows(Matrix::HALVES)) return multiply_integers<Matrix::HALVES>(A, x, y, M, threads);
#endif
  const int64_t step = M > FEW ? BLOCK_ROWS : std::max<int64_t>(1, JOB / A.row_bytes() / 8) * 8;
  share((y.N + step - 1) / step, threads, [&](int64_t job) {
    const int64_t begin = job * step, end = std::min(begin + step, y.N);
    if (M > FEW)
      many(A, begin, end, x, y, M);
    else
      few(A, begin, end, x, y, M);
  });
}

}  // namespace

// x, y [M, K], [M, N], both bf16 or both fp32; K a multiple of 32 and of the group, which is 32 to 2048, a power of two.

// q [N, K / 2]: byte l of the 16 for 32 columns holds column l below and 16 + l above. offset may be null: -8 scale.
KERNEL(int4_linear)(const void *x, const uint8_t *q, const uint16_t *scale, const uint16_t *offset, void *y, int64_t M,
                    int64_t N, int64_t K, int64_t group, int64_t bf16, int64_t bf16_scales, int64_t threads) {
  multiply(Int4{{q, {scale, bf16_scales}, {offset, bf16_scales}, K, group}}, x, {y, N, bf16}, M, threads);
}
RECORDED(int4_linear)

KERNEL(int8_linear)(const void *x, const uint8_t *q, const uint16_t *scale, void *y, int64_t M, int64_t N, int64_t K,
                    int64_t group, int64_t bf16, int64_t bf16_scales, int64_t threads) {
  multiply(Int8{{q, {scale, bf16_scales}, {nullptr, 0}, K, group}}, x, {y, N, bf16}, M, threads);
}
RECORDED(int8_linear)

KERNEL(dense_linear)(const void *x, const void *weight, void *y, int64_t M, int64_t N, int64_t K, int64_t bf16,
                     int64_t bf16_weight, int64_t threads) {
  if (bf16_weight)
    multiply(Dense<uint16_t>{static_cast<const uint16_t *>(weight), K}, x, {y, N, bf16}, M, threads);
  else
    multiply(Dense<float>{static_cast<const float *>(weight), K}, x, {y, N, bf16}, M, threads);
}
RECORDED(dense_linear)
