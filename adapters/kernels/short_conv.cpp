// The short causal convolution over tokens, a few taps a channel (models/conv.py, `short_conv`).

#include "threads.h"
#include "vector.h"

namespace {

constexpr int64_t CHANNELS = 256, TOKENS = 16;  // of a job: its taps stay in the nearest cache

INLINE void fetch(const float *from, int64_t values) {
  for (int64_t i = 0; i < values; i += LANES) __builtin_prefetch(from + i, 0, 2);
}

// taps [width, size] -> [size, CHANNELS]; a constant size is vector code.
template <typename Size>
INLINE void turn(const float *taps, Size size, int64_t width, float *to) {
  for (int64_t c = 0; c < width; ++c)
    for (int64_t j = 0; j < size; ++j) to[j * CHANNELS + c] = taps[c * size + j];
}

// One token of `width` channels; row(j) is the input that tap j meets; taps [size, CHANNELS].
template <typename Row>
INLINE void convolve(const Row &row, const float *taps, const float *bias, float *y, int64_t width, int64_t size,
                     bool silu) {
  alignas(64) float sums[CHANNELS];
  for (int64_t c = 0; c < width; ++c) sums[c] = bias ? bias[c] : 0.f;
  for (int64_t j = 0; j < size; ++j, taps += CHANNELS) {
    const float *from = row(j);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) sums[c] += taps[c] * from[c];
  }
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) y[c] = silu ? silu1(sums[c]) : sums[c];
}

}  // namespace

// x [B, T, C], past [B, size - 1, C], taps [C, size], size <= 16, bias [C] or null -> rows [B, size - 1 + T, C] = past, x
// and y [B, T, C] with y_t = bias + sum_j taps_j rows_{t+j}, through SiLU if asked.
KERNEL(short_conv)(const float *x, const float *past, const float *taps, const float *bias, float *rows, float *y,
                   int64_t B, int64_t T, int64_t C, int64_t size, int64_t silu, int64_t threads) {
  const int64_t keep = size - 1, parts = (C + CHANNELS - 1) / CHANNELS, steps = (T + TOKENS - 1) / TOKENS;
  share(B * parts * steps, threads, [&](int64_t job) {
    const int64_t b = job / (parts * steps), step = job / parts % steps, first = job % parts * CHANNELS;
    const int64_t width = C - first < CHANNELS ? C - first : CHANNELS;
    const float *x_b = x + b * T * C + first, *past_b = past + b * keep * C + first, *add = bias ? bias + first : bias;
    float *rows_b = rows + b * (keep + T) * C + first;
    if (const int64_t next = first + threads * CHANNELS; next + CHANNELS <= C) {  // what this thread will want then
      fetch(taps + next * size, size * CHANNELS);
      for (int64_t j = 0; j < keep; ++j) fetch(past_b + j * C + next - first, CHANNELS);
    }
    alignas(64) float turned[16 * CHANNELS];
    if (size == 4)
      turn(taps + first * 4, std::integral_constant<int, 4>{}, width, turned);
    else
      turn(taps + first * size, size, width, turned);
    for (int64_t j = 0; j < keep && step == 0; ++j) std::memcpy(rows_b + j * C, past_b + j * C, sizeof(float) * width);
    for (int64_t t = step * TOKENS; t < T && t < (step + 1) * TOKENS; ++t) {
      const auto row = [&](int64_t j) { return t + j < keep ? past_b + (t + j) * C : x_b + (t + j - keep) * C; };
      float *to = y + (b * T + t) * C + first;
      std::memcpy(rows_b + (keep + t) * C, x_b + t * C, sizeof(float) * width);
      convolve(row, turned, add, to, width, size, silu);
    }
  });
}
RECORDED(short_conv)
