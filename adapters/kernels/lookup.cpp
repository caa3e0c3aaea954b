// Rows of a matrix stored as int4 or int8, in fp32: an embedding's look-up. The references are the ops in
// adapters/formats/; every id is one of a row.

#include "codes.h"

namespace {

// run(row of codes, its scales, its offsets, y) for each id.
template <typename Run>
void rows(const Grouped &A, int64_t row_bytes, const int64_t *ids, int64_t n, float *y, Run run) {
  const int64_t groups = A.K / A.group, room = groups + 16;
  std::vector<float> scale(room), offset(room);
  for (int64_t i = 0; i < n; ++i, y += A.K) {
    Scales::widen(A.scale, ids[i] * groups, groups, scale.data());
    if (A.offset.values) Scales::widen(A.offset, ids[i] * groups, groups, offset.data());
    run(A.q + ids[i] * row_bytes, scale.data(), A.offset.values ? offset.data() : nullptr, y);
  }
}

}  // namespace

// As int4_linear (codes_linear.cpp); ids [n], y [n, K].
KERNEL(int4_rows)(const uint8_t *q, const uint16_t *scale, const uint16_t *offset, const int64_t *ids, float *y,
                  int64_t n, int64_t K, int64_t group, int64_t bf16_scales) {
  const Grouped A{q, {scale, bf16_scales}, {offset, bf16_scales}, 0, K, group};
  rows(A, K / 2, ids, n, y, [&](const uint8_t *codes, const float *by, const float *more, float *to) {
    for (int64_t c = 0; c < K; c += PAIR) {
      const float unit = by[c / group], shift = more ? more[c / group] : 0.f;
      const int zero = more ? 0 : 8;
      for (int64_t i = 0; i < 16; ++i) {
        to[c + i] = static_cast<float>((codes[c / 2 + i] & 15) - zero) * unit + shift;
        to[c + 16 + i] = static_cast<float>((codes[c / 2 + i] >> 4) - zero) * unit + shift;
      }
    }
  });
}

KERNEL(int8_rows)(const uint8_t *q, const uint16_t *scale, const int64_t *ids, float *y, int64_t n, int64_t K,
                  int64_t group, int64_t bf16_scales) {
  const Grouped A{q, {scale, bf16_scales}, {nullptr, 0}, 0, K, group};
  rows(A, K, ids, n, y, [&](const uint8_t *codes, const float *by, const float *, float *to) {
    for (int64_t c = 0; c < K; ++c) to[c] = static_cast<float>(static_cast<int8_t>(codes[c])) * by[c / group];
  });
}
