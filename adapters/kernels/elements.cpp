// Elementwise steps between the kernels of a recorded forward (adapters/recording.py), rounded as torch rounds them.

#include "kernels.h"

namespace {

enum : int64_t { COPY, ADD, MULTIPLY, SCALE, RELU, SQUARE };  // as in recording.py

template <typename F>
INLINE void along(const float *a, const float *b, float *y, int64_t n, int64_t a_step, int64_t b_step, int64_t y_step,
                  F value) {
  if (a_step == 1 && b_step == 1 && y_step == 1) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = value(a[i], b[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i * y_step] = value(a[i * a_step], b[i * b_step]);
  }
}

}  // namespace

// y = a, a + factor b, a b, factor a, relu(a) or a a, by `kind`. Three dimensions of size n0, n1, n2, in which each of the
// three steps so many values (0: the same again); where `kind` takes no b, b is a.
KERNEL(elements)(const float *a, const float *b, float *y, int64_t kind, float factor, int64_t n0, int64_t n1,
                 int64_t n2, int64_t a0, int64_t a1, int64_t a2, int64_t b0, int64_t b1, int64_t b2, int64_t y0,
                 int64_t y1, int64_t y2) {
  for (int64_t i = 0; i < n0; ++i)
    for (int64_t j = 0; j < n1; ++j) {
      const float *a_row = a + i * a0 + j * a1, *b_row = b + i * b0 + j * b1;
      float *row = y + i * y0 + j * y1;
      const auto run = [&](auto value) { along(a_row, b_row, row, n2, a2, b2, y2, value); };
      if (kind == COPY) run([](float x, float) { return x; });
      if (kind == ADD && factor == 1.f) run([](float x, float z) { return x + z; });
      if (kind == ADD && factor != 1.f) run([factor](float x, float z) { return x + factor * z; });
      if (kind == MULTIPLY) run([](float x, float z) { return x * z; });
      if (kind == SCALE) run([factor](float x, float) { return factor * x; });
      if (kind == RELU) run([](float x, float) { return x < 0.f ? 0.f : x; });
      if (kind == SQUARE) run([](float x, float) { return x * x; });
    }
}
RECORDED(elements)
