// Mamba-2 between its convolution and its output projection (models/mamba2.py, `mamba2_mix`), for a few tokens: step
// size, the recurrence, skip, gate and norm. Heads are jobs that never meet; a token's norm follows when all are done.
//
//     h <- e^{dt A} h + dt u B^T;  y = h C + D u                                   h [P, N] per head

#include "mamba2.h"
#include "memory.h"

namespace {

constexpr int64_t ROWS = 4;  // rows of h per pass: their sums are independent, so additions overlap

// The last token's update, past the caches.
template <int64_t rows>
INLINE void put_out(const float *from, float *to, const float *x, float decay, const float *B, const float *C, float *y,
                    int64_t N) {
  for (int64_t r = 0; r < rows; ++r, from += N, to += N) {
    Lanes total = zero();
    for (int64_t n = 0; n < N; n += LANES) {
      const Lanes h = fma(load(B + n), all(x[r]), load(from + n) * all(decay));
      stream(to + n, h);
      total = fma(h, load(C + n), total);
    }
    y[r] = sum(total);
  }
}

// All T tokens of `rows` rows of one head's h; N adjacent columns. With `out` the last is streamed, and what lies
// between stays on the stack.
template <int64_t rows>
INLINE void tokens(const float *h0, float *h1, const float *X, const float *decay, const float *B, const float *C,
                   float *y, int64_t T, int64_t N, int64_t x_stride, int64_t b_stride, bool out) {
  alignas(64) float between[rows * WIDTH];
  float *to = out ? between : h1;
  for (int64_t t = 0; t < T; ++t) {
    const float *from = t ? to : h0, *B_t = B + t * b_stride, *C_t = C + t * b_stride;
    if (out && t + 1 == T) {
      put_out<rows>(from, h1, X + t * x_stride, decay[t], B_t, C_t, y + t * x_stride, N);
      return;
    }
    float sums[rows];
    for (int64_t r = 0; r < rows; ++r) {
      const float x = X[t * x_stride + r], w = decay[t], *in = from + r * N;
      float *next = to + r * N, sum = 0.f;
#pragma omp simd reduction(+ : sum)
      for (int64_t n = 0; n < N; ++n) {
        const float h = w * in[n] + x * B_t[n];
        next[n] = h;
        sum += h * C_t[n];
      }
      sums[r] = sum;
    }
    for (int64_t r = 0; r < rows; ++r) y[t * x_stride + r] = sums[r];
  }
}

}  // namespace

// mixed [B, T, H P + 2 G N]: u | B | C; dt [B, T, H]; z, y, X [B, T, H, P]; gain [H P] or null (no norm); h0, h1
// [B, H, P, N]; padding [B, T] or null. `before`: the norm comes before the gate. Also put out for the journal:
// X = dt u and log_decay [B, T, H].
KERNEL(mamba2_mix)(const float *mixed, const float *dt, const float *z, const float *A_log, const float *dt_bias,
                   const float *D, const float *gain, const float *h0, const uint8_t *padding, float *y, float *X,
                   float *log_decay, float *h1, int64_t B, int64_t T, int64_t H, int64_t G, int64_t P, int64_t N,
                   int64_t norm_groups, int64_t before, float dt_low, float dt_high, float eps, int64_t threads) {
  const int64_t width = H * P + 2 * G * N, inner = H * P;
  const bool out = N <= WIDTH && streams(h1, B * H * P * N, N);
  share(B * H, threads, [&](int64_t job) {
    const int64_t batch = job / H, head = job % H, first = batch * T;
    const float *u = mixed + first * width + head * P, *B_rows = mixed + first * width + inner + head / (H / G) * N;
    float decay[TOKENS], *X_rows = X + first * inner + head * P, *y_rows = y + first * inner + head * P;
    const float A = -std::exp(A_log[head]);
    for (int64_t t = 0; t < T; ++t) {
      const bool real = !padding || !padding[first + t];
      const float size = real ? step_size(dt[(first + t) * H + head], dt_bias[head], dt_low, dt_high) : 0.f;
      log_decay[(first + t) * H + head] = A * size;
      decay[t] = std::exp(A * size);
      for (int64_t p = 0; p < P; ++p) X_rows[t * inner + p] = size * u[t * width + p];
    }
    // rows of h in order, every token of each: B and C stay near, h passes once
    const float *from = h0 + job * P * N;
    float *to = h1 + job * P * N;
    int64_t p = 0;
    for (; p + ROWS <= P; p += ROWS)
      tokens<ROWS>(from + p * N, to + p * N, X_rows + p, decay, B_rows, B_rows + G * N, y_rows + p, T, N, inner, width,
                   out);
    for (; p < P; ++p)
      tokens<1>(from + p * N, to + p * N, X_rows + p, decay, B_rows, B_rows + G * N, y_rows + p, T, N, inner, width,
                out);
    if (out) streamed();
    for (int64_t t = 0; t < T; ++t)
      skip_and_gate(y_rows + t * inner, u + t * width, D[head], z + (first + t) * inner + head * P, !before, P);
  });
  norm_groups_of(y, gain, z, before, B * T, norm_groups, inner / norm_groups, eps, 1);
}
RECORDED(mamba2_mix)
