// The query or key rows of attention between their projection and the tape (models/attention.py, `head_rows`): RMS norm
// over each head, then rotary positions over its first 2 R channels, halves against halves.

#include "threads.h"
#include "vector.h"

// x rows `stride` apart hold H heads of `step` values, of which the first D count; gain [D] or null; cos, sin [B, T, R]
// or null (R = 0); y [B, T, H, D].
KERNEL(head_rows)(const float *x, const float *gain, const float *cos, const float *sin, float *y, int64_t B, int64_t T,
                  int64_t H, int64_t D, int64_t R, int64_t stride, int64_t step, float offset, float eps,
                  int64_t threads) {
  share_rows(B * T, threads, [&](int64_t row) {
    const float *c = cos + row * R, *s = sin + row * R;
    for (int64_t h = 0; h < H; ++h) {
      const float *from = x + row * stride + h * step;
      float *to = y + (row * H + h) * D;
      const float by = gain ? 1.f / std::sqrt(dot(from, from, D) / static_cast<float>(D) + eps) : 1.f;
      if (gain)
        for (int64_t d = 0; d < D; ++d) to[d] = from[d] * by * (offset + gain[d]);
      else
        std::memcpy(to, from, sizeof(float) * D);
#pragma omp simd
      for (int64_t r = 0; r < R; ++r) {
        const float first = to[r], second = to[R + r];
        to[r] = first * c[r] - second * s[r];
        to[R + r] = second * c[r] + first * s[r];
      }
    }
  });
}
RECORDED(head_rows)
