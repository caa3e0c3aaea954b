// Row by row, the same for every architecture: norms, token shift, short convolution, SwiGLU's product. Their torch
// references stand in adapters/norm.py, models/rwkv7.py, models/conv.py and models/feed_forward.py.

#include "vector.h"

namespace {

template <int64_t SIZE>
INLINE void convolve(const float *rows, const float *taps, const float *bias, float *y, int64_t C, int64_t silu,
                     int64_t size) {
  const int64_t width = SIZE ? SIZE : size;
#pragma omp simd
  for (int64_t c = 0; c < C; ++c) {
    float sum = bias ? bias[c] : 0.f;
    for (int64_t j = 0; j < width; ++j) sum += taps[c * width + j] * rows[j * C + c];
    y[c] = silu ? silu1(sum) : sum;
  }
}

}  // namespace

// x, y [rows, width], gain [width]: y = x / rms(x) (offset + gain).
KERNEL(rms_norm)(const float *x, const float *gain, float *y, int64_t rows, int64_t width, float offset, float eps) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    const float by = 1.f / std::sqrt(dot(x, x, width) / static_cast<float>(width) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * by * (offset + gain[i]);
  }
}
RECORDED(rms_norm)

// x, y [rows, width], gain, shift [width]: y = (x - mean) / std gain + shift.
KERNEL(layer_norm)(const float *x, const float *gain, const float *shift, float *y, int64_t rows, int64_t width,
                   float eps) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    const float mean = total(x, width) / static_cast<float>(width);
    float square = 0.f;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float by = 1.f / std::sqrt(square / static_cast<float>(width) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) y[i] = (x[i] - mean) * by * gain[i] + shift[i];
  }
}
RECORDED(layer_norm)

// x [B, T, C], past [B, 1, C], mu [M, C] -> rows [B, 1 + T, C] = past, x and mixed [M, B, T, C].
KERNEL(token_shift)(const float *x, const float *past, const float *mu, float *rows, float *mixed, int64_t M, int64_t B,
                    int64_t T, int64_t C) {
  for (int64_t b = 0; b < B; ++b) {
    float *row = rows + b * (1 + T) * C;
    std::memcpy(row, past + b * C, sizeof(float) * C);
    std::memcpy(row + C, x + b * T * C, sizeof(float) * T * C);
    for (int64_t m = 0; m < M; ++m)
      for (int64_t t = 0; t < T; ++t) {
        const float *old = row + t * C, *now = old + C, *by = mu + m * C;
        float *to = mixed + ((m * B + b) * T + t) * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) to[c] = now[c] + (old[c] - now[c]) * by[c];
      }
  }
}
RECORDED(token_shift)

// x [B, T, C], past [B, size - 1, C], taps [C, size], bias [C] or null -> rows [B, size - 1 + T, C] = past, x and
// y [B, T, C] with y_t = bias + sum_j taps_j rows_{t+j}, through SiLU if asked.
KERNEL(short_conv)(const float *x, const float *past, const float *taps, const float *bias, float *rows, float *y,
                   int64_t B, int64_t T, int64_t C, int64_t size, int64_t silu) {
  for (int64_t b = 0; b < B; ++b) {
    float *row = rows + b * (size - 1 + T) * C;
    std::memcpy(row, past + b * (size - 1) * C, sizeof(float) * (size - 1) * C);
    std::memcpy(row + (size - 1) * C, x + b * T * C, sizeof(float) * T * C);
    for (int64_t t = 0; t < T; ++t, row += C) {
      float *to = y + (b * T + t) * C;
      if (size == 4)
        convolve<4>(row, taps, bias, to, C, silu, size);
      else if (size == 3)
        convolve<3>(row, taps, bias, to, C, silu, size);
      else
        convolve<0>(row, taps, bias, to, C, silu, size);
    }
  }
}
RECORDED(short_conv)

// gate, up, y [n]: y = silu(scale gate) up.
KERNEL(gated_silu)(const float *gate, const float *up, float *y, int64_t n, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = silu1(scale * gate[i]) * up[i];
}
RECORDED(gated_silu)

// x, gate, y [n]: y = x sigmoid(gate).
KERNEL(sigmoid_gate)(const float *x, const float *gate, float *y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * sigmoid1(gate[i]);
}
RECORDED(sigmoid_gate)

// x, y [n]: y = tanh(x) or, with `kind` 1, sigmoid(x).
KERNEL(activate)(const float *x, float *y, int64_t n, int64_t kind) {
  if (kind == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = sigmoid1(x[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = tanh1(x[i]);
  }
}
RECORDED(activate)
