// y = x W^T for a matrix stored as int4 or int8, without unpacking it: whole numbers times codes (units.h). The
// references are the ops in adapters/formats/. Bands of W stand in the lanes of vectors, are read once from memory
// and multiplied by all rows of x. The number of rows of x and the threads change nothing in what is rounded.

#if defined(__AVX2__) && !defined(__AVX512F__)
#include "panel_avx2.h"
#else
#include "codes_band.h"
#endif

namespace {

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
  Padded padded;
  const Grouped A = stored.N < BAND ? padded(stored, stored.K * 2 / SLOTS) : stored;
  const int64_t size = y.bf16 ? 2 : 4;
  for (int64_t from = 0; from < M; from += AT_ONCE) {
    const int64_t rows = std::min(AT_ONCE, M - from);
    const float *x = widened_rows(static_cast<const char *>(given) + from * A.K * size, rows * A.K, y.bf16);
    multiply_rows<SLOTS, BYTES>(A, x, {static_cast<char *>(y.y) + from * y.N * size, y.N, y.bf16}, rows, threads);
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
// `bytes`: what x is rounded to (units.h).

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
