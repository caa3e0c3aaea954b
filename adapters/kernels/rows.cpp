// Row by row, the same for every architecture: norms, token shift, activations and gates. Their torch references stand in
// adapters/norm.py, models/rwkv7.py and models/feed_forward.py.

#include "threads.h"
#include "vector.h"

namespace {

// run(i) for i in [0, n), in stretches that a compiler can vectorise.
template <typename Run>
INLINE void each_value(int64_t n, int64_t threads, const Run &run) {
  constexpr int64_t width = 1024;
  share_rows((n + width - 1) / width, threads, [&](int64_t row) {
    const int64_t end = (row + 1) * width < n ? (row + 1) * width : n;
#pragma omp simd
    for (int64_t i = row * width; i < end; ++i) run(i);
  });
}

}  // namespace

// x [rows, width], gain [width]: y = x / rms(x) (offset + gain).
KERNEL(rms_norm)(const float *x, const float *gain, float *y, int64_t rows, int64_t width, float offset, float eps,
                 int64_t threads) {
  share_rows(rows, threads, [&](int64_t row) {
    const float *from = x + row * width, by = 1.f / std::sqrt(dot(from, from, width) / static_cast<float>(width) + eps);
    float *to = y + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * by * (offset + gain[i]);
  });
}
RECORDED(rms_norm)

// x, y [rows, width], gain, shift [width]: y = (x - mean) / std gain + shift.
KERNEL(layer_norm)(const float *x, const float *gain, const float *shift, float *y, int64_t rows, int64_t width,
                   float eps, int64_t threads) {
  share_rows(rows, threads, [&](int64_t row) {
    const float *from = x + row * width, mean = total(from, width) / static_cast<float>(width);
    float square = 0.f, *to = y + row * width;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < width; ++i) square += (from[i] - mean) * (from[i] - mean);
    const float by = 1.f / std::sqrt(square / static_cast<float>(width) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = (from[i] - mean) * by * gain[i] + shift[i];
  });
}
RECORDED(layer_norm)

// x [B, T, C], past [B, 1, C], mu [M, C] -> rows [B, 1 + T, C] = past, x and mixed [M, B, T, C].
KERNEL(token_shift)(const float *x, const float *past, const float *mu, float *rows, float *mixed, int64_t M, int64_t B,
                    int64_t T, int64_t C, int64_t threads) {
  share_rows(B * T, threads, [&](int64_t row) {
    const int64_t b = row / T, t = row % T;
    const float *now = x + row * C, *old = t ? now - C : past + b * C;
    float *kept = rows + (b * (1 + T) + t) * C;
    if (t == 0) std::memcpy(kept, old, sizeof(float) * C);
    std::memcpy(kept + C, now, sizeof(float) * C);
    for (int64_t m = 0; m < M; ++m) {
      const float *by = mu + m * C;
      float *to = mixed + (m * B * T + row) * C;
#pragma omp simd
      for (int64_t c = 0; c < C; ++c) to[c] = now[c] + (old[c] - now[c]) * by[c];
    }
  });
}
RECORDED(token_shift)

// gate, up, y [n]: y = silu(scale gate) up.
KERNEL(gated_silu)(const float *gate, const float *up, float *y, int64_t n, float scale, int64_t threads) {
  each_value(n, threads, [&](int64_t i) { y[i] = silu1(scale * gate[i]) * up[i]; });
}
RECORDED(gated_silu)

// x, gate, y [n]: y = x sigmoid(gate).
KERNEL(sigmoid_gate)(const float *x, const float *gate, float *y, int64_t n, int64_t threads) {
  each_value(n, threads, [&](int64_t i) { y[i] = x[i] * sigmoid1(gate[i]); });
}
RECORDED(sigmoid_gate)

// x, y [n]: y = tanh(x) or, with `kind` 1, sigmoid(x).
KERNEL(activate)(const float *x, float *y, int64_t n, int64_t kind, int64_t threads) {
  if (kind == 1)
    each_value(n, threads, [&](int64_t i) { y[i] = sigmoid1(x[i]); });
  else
    each_value(n, threads, [&](int64_t i) { y[i] = tanh1(x[i]); });
}
RECORDED(activate)
