// y = x W^T for a matrix stored as int4 or int8, without unpacking it: whole numbers times codes (rounded.h). The
// references are the ops in adapters/formats/. Bands of W stand in the lanes of vectors (turned.h), are read once from
// memory and multiplied by all rows of x. The number of rows of x and the threads change nothing in what is rounded.

#include "codes.h"
#if defined(__AVX512VNNI__)
#include "codes_panel.h"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int MEET = 8;  // rows of x that a vector of codes meets while it is in a register
#elif defined(__AVX2__) || defined(FLUVIAL_NEON)
constexpr int MEET = 4;
#else
constexpr int MEET = 2;
#endif
constexpr int64_t AT_ONCE = 128;  // rows of x that stay in the cache meanwhile
#if defined(__AVX512VNNI__)
constexpr int64_t FEW = 16;  // rows of x; with more it pays to keep what was turned round
#endif

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

// A matrix of fewer rows with others before them, so that its last is the last of a whole band.
struct Padded {
  std::vector<uint8_t> q;
  std::vector<uint16_t> scale, offset;

  Grouped operator()(const Grouped &A, int64_t row_bytes) {
    const auto behind = [&](auto &space, const auto *values, int64_t width) {
      space.assign(BAND * width, 0);
      std::copy(values, values + A.N * width, space.end() - A.N * width);
      return space.data() + (BAND - A.N) * width;
    };
    Grouped to = A;
    to.q = behind(q, A.q, row_bytes), to.scale.values = behind(scale, A.scale.values, A.K / A.group);
    if (A.offset.values) to.offset.values = behind(offset, A.offset.values, A.K / A.group);
    return to;
  }
};

template <int SLOTS, int BYTES>
void multiply_rounded(const Grouped &stored, const void *given, Result y, int64_t M, int64_t threads) {
#if defined(__AVX512VNNI__)
  if (M > FEW) return multiply_panels<SLOTS, BYTES>(stored, given, y, M, threads);
#endif
  const int64_t row_bytes = stored.K * 2 / SLOTS;
  Padded padded;
  const Grouped A = stored.N < BAND ? padded(stored, row_bytes) : stored;
  const int64_t pairs = A.K / PAIR, most = std::min(M, AT_ONCE);
  static thread_local std::vector<Rounded<SLOTS, BYTES>> space;
  if (static_cast<int64_t>(space.size()) < most * pairs) space.resize(most * pairs);
  Rounded<SLOTS, BYTES> *rounded = space.data();
  const int64_t size = y.bf16 ? 2 : 4;
  for (int64_t from = 0; from < M; from += most) {
    const int64_t rows = std::min(most, M - from);
    const float *x = widened_rows(static_cast<const char *>(given) + from * A.K * size, rows * A.K, y.bf16);
    share((pairs + 15) / 16, rows * A.K < THREADED / 8 ? 1 : threads, [&](int64_t job) {
      const int64_t pair = 16 * job, count = std::min<int64_t>(16, pairs - pair);
      tiles<MEET>(rows, [&](int64_t size, int64_t first) {
        for (int64_t m = 0; m < size; ++m)
          Rounded<SLOTS, BYTES>::fill(x + (first + m) * A.K + pair * PAIR, count,
                                      rounded + first * pairs + pair * size + m, size);
      });
    });
    const Result to{static_cast<char *>(y.y) + from * y.N * size, y.N, y.bf16};
#if defined(__AVX512VNNI__)
    if (M == 1) return multiply_lone(A, rounded, to, threads);
#endif
    each_band(A.N, threads, [&](int64_t row, int64_t fresh) {
      tiles<MEET>(rows, [&](auto size, int64_t m) {
        if (SLOTS == 4 && A.offset.values)
          band<size, SLOTS == 4>(A, row, fresh, rounded + m * pairs, to, m);
        else
          band<size, false>(A, row, fresh, rounded + m * pairs, to, m);
      });
    });
  }
}

template <int SLOTS>
void multiply(int64_t bytes, const Grouped &A, const void *x, const Result &y, int64_t M, int64_t threads) {
  if (bytes == 1) return multiply_rounded<SLOTS, 1>(A, x, y, M, threads);
  if (bytes == 2) return multiply_rounded<SLOTS, 2>(A, x, y, M, threads);
  multiply_rounded<SLOTS, 3>(A, x, y, M, threads);
}

}  // namespace

// x, y [M, K], [M, N], both bf16 or both fp32; K a multiple of 32 and of the group, which is 32 to 256, a power of two.
// `bytes`: what x is rounded to (rounded.h).

// q [N, K / 2]: byte l of the 16 for 32 columns holds column l below and 16 + l above. offset may be null: -8 scale.
KERNEL(int4_linear)(const void *x, const uint8_t *q, const uint16_t *scale, const uint16_t *offset, void *y, int64_t M,
                    int64_t N, int64_t K, int64_t group, int64_t bf16, int64_t bf16_scales, int64_t bytes,
                    int64_t threads) {
  multiply<4>(bytes, {q, {scale, bf16_scales}, {offset, bf16_scales}, N, K, group}, x, {y, N, bf16}, M, threads);
}
RECORDED(int4_linear)

KERNEL(int8_linear)(const void *x, const uint8_t *q, const uint16_t *scale, void *y, int64_t M, int64_t N, int64_t K,
                    int64_t group, int64_t bf16, int64_t bf16_scales, int64_t bytes, int64_t threads) {
  multiply<2>(bytes, {q, {scale, bf16_scales}, {nullptr, 0}, N, K, group}, x, {y, N, bf16}, M, threads);
}
RECORDED(int8_linear)
