// y = x W^T for a matrix stored as int4 or int8, without unpacking it: whole numbers times codes (rounded.h). The
// references are the ops in adapters/formats/. The number of rows of x and the threads change nothing in what is rounded.

#include "codes_few.h"
#if defined(__AVX512VNNI__)
#include "codes_panel.h"
#else
#include "codes_many.h"
#endif

namespace {

constexpr int64_t FEW_CODES = 16;  // rows of x; with more it pays to turn W round
#if defined(__AVX512VNNI__)
constexpr int64_t AT_ONCE = FEW_CODES;
#endif

template <bool SHIFT, int SLOTS, bool WIDE>
void multiply_rounded(const Grouped &A, const Rounded<SLOTS, WIDE> *x, int64_t stride, const Result &y, int64_t M,
                      int64_t threads) {
#if !defined(__AVX512VNNI__)
  if (M > FEW_CODES)
    return share((A.N + BAND - 1) / BAND, threads, [&](int64_t job) {
      many<SHIFT>(A, job * BAND, std::min(BAND, A.N - job * BAND), x, stride, y, M);
    });
#endif
  const int64_t step = std::max<int64_t>(1, JOB * SLOTS / (2 * A.K) / 8) * 8;
  share((A.N + step - 1) / step, threads,
        [&](int64_t job) { few<SHIFT>(A, job * step, std::min((job + 1) * step, A.N), x, stride, y, M); });
}

template <int SLOTS, bool WIDE>
void multiply(const Grouped &A, const void *given, Result y, int64_t M, int64_t threads) {
#if defined(__AVX512VNNI__)
  if (M > FEW_CODES) return multiply_panels<SLOTS, WIDE>(A, given, y, M, threads);
#endif
  constexpr int64_t STEP = Rounded<SLOTS, WIDE>::COLUMNS;
  const int64_t stride = (A.K + STEP - 1) / STEP;
  static thread_local std::vector<Rounded<SLOTS, WIDE>> space;
  const int64_t most = std::min(M, AT_ONCE);
  if (static_cast<int64_t>(space.size()) < most * stride) space.resize(most * stride);
  Rounded<SLOTS, WIDE> *rounded = space.data();
  for (int64_t from = 0; from < M; from += most) {
    const int64_t rows = std::min(most, M - from);
    const float *x = widened_rows(static_cast<const char *>(given) + from * A.K * (y.bf16 ? 2 : 4), rows * A.K, y.bf16);
    share(rows, rows > FEW_CODES ? threads : 1, [&](int64_t m) {
      for (int64_t i = 0; i < stride; ++i) rounded[m * stride + i].fill(x + m * A.K + i * STEP, A.K - i * STEP);
    });
    const Result to{static_cast<char *>(y.y) + from * y.N * (y.bf16 ? 2 : 4), y.N, y.bf16};
    if (SLOTS == 4 && A.offset.values)
      multiply_rounded<SLOTS == 4>(A, rounded, stride, to, rows, threads);
    else
      multiply_rounded<false>(A, rounded, stride, to, rows, threads);
  }
}

}  // namespace

// x, y [M, K], [M, N], both bf16 or both fp32; K a multiple of 32 and of the group, which is 32 to 256, a power of two.

// q [N, K / 2]: byte l of the 16 for 32 columns holds column l below and 16 + l above. offset may be null: -8 scale.
KERNEL(int4_linear)(const void *x, const uint8_t *q, const uint16_t *scale, const uint16_t *offset, void *y, int64_t M,
                    int64_t N, int64_t K, int64_t group, int64_t bf16, int64_t bf16_scales, int64_t threads) {
  const Grouped A{q, {scale, bf16_scales}, {offset, bf16_scales}, N, K, group};
  bf16 ? multiply<4, false>(A, x, {y, N, bf16}, M, threads) : multiply<4, true>(A, x, {y, N, bf16}, M, threads);
}
RECORDED(int4_linear)

KERNEL(int8_linear)(const void *x, const uint8_t *q, const uint16_t *scale, void *y, int64_t M, int64_t N, int64_t K,
                    int64_t group, int64_t bf16, int64_t bf16_scales, int64_t threads) {
  const Grouped A{q, {scale, bf16_scales}, {nullptr, 0}, N, K, group};
  bf16 ? multiply<2, false>(A, x, {y, N, bf16}, M, threads) : multiply<2, true>(A, x, {y, N, bf16}, M, threads);
}
RECORDED(int8_linear)
